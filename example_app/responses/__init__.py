"""`/v1/responses`: OpenAI's Responses, in the background too, in front of the same upstream.

endpoint.py  the requests: create, retrieve (as a stream too), cancel, delete
run.py       one response: Qwen's events in, the events of a response out, and its record
records.py   what is known of each response, for a client that polls
inner.py     the requests that the server makes to itself

A response is a stream of the middleware. One in the background has a name, so that it continues
without a client, `starting_after` finds its place on any worker, and `cancel` stops it there.
"""
