"""`POST /threads/{thread_id}/messages`: cache, ladder of providers, stream, memory, record.

endpoint.py        the request and its stream: `delta` per piece, then `done`
route_and_call.py  the providers, and which one answers
memory.py          the turns of the threads
"""
