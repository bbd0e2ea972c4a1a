"""Record the bytes of the responses of an app; `/sent/<group>` returns them."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Recording:
    """Record the bytes of each response of `app`, by the first two parts of the path.

    Attributes:
        sent: the bytes of each response, by the group and the name that its path begins with.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.sent: dict[str, dict[str, list[bytes]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        group, name = [*scope["path"].split("/"), ""][1:3]
        if group == "sent":
            await JSONResponse(self._sent(name))(scope, receive, send)
            return
        responses = self.sent.setdefault(group, {}).setdefault(name, [])
        number = len(responses)
        responses.append(b"")

        async def record(message: Message) -> None:
            responses[number] += message.get("body", b"")
            await send(message)

        await self.app(scope, receive, record)

    def _sent(self, group: str) -> dict[str, list[str]]:
        """Return the responses of a group, with each byte as the Latin-1 character it is."""
        return {
            name: [response.decode("latin-1") for response in responses]
            for name, responses in self.sent.get(group, {}).items()
        }
