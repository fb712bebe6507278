"""Login and logout with a session, and forms that only our own pages can send.

`peloton.toml` beside it serves it. The password of everybody is "secret": an application of yours
asks its database.
"""

from hmac import compare_digest
from html import escape

from pelotontx.web import App, HTTPError, Request, Response, csrf, html, redirect

app = App()
csrf.protect(app)


@app.get(r"^/$")
async def index(request: Request) -> Response:
    session = await request.session()
    if "user" not in session:
        return redirect("/login")
    visits = session["visits"] = session.get("visits", 0) + 1
    return html(f"""<!doctype html>
<title>Welcome</title>
<h1>Welcome, {escape(session["user"])}</h1>
<p>Page views: <output>{visits}</output></p>
<form method="post" action="/logout">{csrf.field(session)}<button>Log out</button></form>
""")


@app.get(r"^/login$")
async def login_page(request: Request) -> Response:
    session = await request.session()
    return html(f"""<!doctype html>
<title>Login</title>
<form method="post">{csrf.field(session)}
<label>Name <input name="user" required></label>
<label>Password <input name="password" type="password" required></label>
<button>Log in</button></form>
""")


@app.post(r"^/login$")
async def login(request: Request) -> Response:
    user, password = request.form_field("user"), request.form_field("password")
    if not user or not compare_digest(password.encode(), b"secret"):
        raise HTTPError(403, "The name or the password is wrong.")
    session = await request.session()
    session.rotate()
    session["user"] = user
    return redirect("/")


@app.post(r"^/logout$")
async def logout(request: Request) -> Response:
    session = await request.session()
    session.destroy()
    return redirect("/login")
