"""`POST /v1/chat/completions`: OpenAI's API in front of a service with another dialect, Qwen's.

endpoint.py      the request, and the response as a stream or as one document
handler.py       one answer: Qwen's events in, OpenAI's chunks out, and the session
transformer.py   what one of Qwen's events becomes
sessions.py      where a conversation continues
qwen_client.py   the requests to Qwen
qwen_service.py  a service with Qwen's dialect that answers from the corpus, without network
in_process.py    carries requests to that service
"""
