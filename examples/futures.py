"""Two loads in parallel: prints "hi" after one second, and the sum of both after two."""

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from pelotontx.flow import later, together


def load_a(reactor) -> Deferred[int]:
    return later(reactor, 1.0, lambda: 1)


async def load_b(reactor) -> int:
    await later(reactor, 2.0)
    return 2


async def program(reactor) -> None:
    later(reactor, 1.0, print, "hi")
    a, b = await together(load_a(reactor), load_b(reactor))
    print(a + b)


if __name__ == "__main__":
    react(program)
