"""The commands that examine a stream from outside, as its clients receive it: doctor and smoke."""
