"""One and the same app in every framework, each wrapped by us as its users would."""
