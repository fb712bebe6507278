"""A small application: two pages and two functions, served by `peloton.toml` beside it."""

from pelotontx.backend.callee import Callee
from pelotontx.web import App, Request

PRICES = {"apple": 30, "pear": 45}

app = App()
callee = Callee()


@app.get(r"^/$")
def index(request: Request) -> str:
    return "The shop is open.\n"


@app.get(r"^/price/(\w+)$")
def price_page(request: Request, name: str) -> dict[str, int]:
    return {name: PRICES[name]}


@callee.function("shop.price", inline=True)
def price(name: str) -> int:
    return PRICES[name]


@callee.function("shop.total")
async def total(basket: dict[str, int]) -> int:
    return sum(PRICES[name] * count for name, count in basket.items())
