"""The hops between a client and an app, as far as the headers of a response show them."""

from typing import Final, NamedTuple

from sse_middleware.doctor.codings import codings_of
from sse_middleware.doctor.visit import Visit


class _Sign(NamedTuple):
    header: str
    contains: str
    """In lower case; `""` for any value."""
    name: str


_SIGNS: Final = (
    _Sign("server", "nginx", "nginx"),
    _Sign("server", "openresty", "OpenResty (nginx)"),
    _Sign("server", "tengine", "Tengine (nginx)"),
    _Sign("server", "apache", "Apache"),
    _Sign("server", "litespeed", "LiteSpeed"),
    _Sign("server", "iis", "IIS"),
    _Sign("server", "caddy", "Caddy"),
    _Sign("via", "caddy", "Caddy"),
    _Sign("server", "envoy", "Envoy"),
    _Sign("x-envoy-upstream-service-time", "", "Envoy"),
    _Sign("server", "awselb", "AWS load balancer"),
    _Sign("x-amz-cf-id", "", "Amazon CloudFront"),
    _Sign("apigw-requestid", "", "Amazon API Gateway"),
    _Sign("x-amzn-requestid", "", "Amazon API Gateway or Lambda"),
    _Sign("cf-ray", "", "Cloudflare"),
    _Sign("x-varnish", "", "Varnish"),
    _Sign("x-fastly-request-id", "", "Fastly"),
    _Sign("x-azure-ref", "", "Azure Front Door"),
    _Sign("x-vercel-id", "", "Vercel"),
    _Sign("x-nf-request-id", "", "Netlify"),
    _Sign("via", "vegur", "Heroku's router"),
    _Sign("via", "heroku", "Heroku's router"),
    _Sign("via", "google", "Google's load balancer"),
    _Sign("fly-request-id", "", "Fly.io's proxy"),
)

_HITS: Final = ("x-cache", "cf-cache-status", "x-vercel-cache", "x-cache-status")


def named_hops(visit: Visit) -> list[str]:
    """Return the names of the hops that the headers show."""
    found = [
        sign.name
        for sign in _SIGNS
        if (value := visit.header(sign.header)) and sign.contains in value.lower()
    ]
    return list(dict.fromkeys(found))


def suspects(visit: Visit) -> str:
    """Return, in sentences, what the headers show about the hop that holds a response back."""
    sentences = []
    names = named_hops(visit)
    if names:
        sentences.append(f"The headers show: {', '.join(names)}.")
    if via := visit.header("via"):
        sentences.append(f"Via: {via}.")
    encoding = visit.header("content-encoding")
    if codings_of(encoding):
        sentences.append(f"The hop that compresses ({encoding}) is the first suspect.")
    elif "no" in visit.header("x-accel-buffering").lower():
        sentences.append(
            "X-Accel-Buffering: no has arrived, which an nginx removes: the hop is probably none."
        )
    elif visit.header("x-stream-id"):
        sentences.append(
            "The middleware sends X-Accel-Buffering: no, which has not arrived: an nginx has "
            "removed it. Either that one ignores it (proxy_ignore_headers), or it obeys, and "
            "another one outside of it buffers, because it does not get the header."
        )
    if not sentences:
        sentences.append("No header shows a hop.")
    return " ".join(sentences)


def cache_evidence(visit: Visit) -> str:
    """Return the header that shows that a response comes from a cache, `""` if none does."""
    age = visit.header("age")
    if age.isdecimal() and int(age[:9]) > 0:
        return f"Age: {age}"
    for name in _HITS:
        if "hit" in (value := visit.header(name)).lower():
            return f"{name}: {value}"
    return ""
