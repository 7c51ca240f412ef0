"""A page of your own, made with Jinja2 and sent by `response_handler`.

Jinja2 escapes the message, as everywhere in `.html` templates. Without a known end nothing is said about it.

    pip install jinja2
    FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.jinja_page:app
"""

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates
from jinja2 import DictLoader, Environment, select_autoescape

from fastapi_maintenance import Maintenance, MaintenanceStatus

# In a real service: Jinja2Templates("templates").
CLOSED = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Tea shop: closed for a moment</title>
<main>
  <h1>The kettle is being descaled</h1>
  <p dir="auto">{{ status.message }}</p>
  {% if status.until %}<p>Tea again at {{ "{:%H:%M}".format(status.until) }} UTC.</p>{% endif %}
</main>
"""
templates = Jinja2Templates(env=Environment(loader=DictLoader({"closed.html": CLOSED}), autoescape=select_autoescape()))


async def page(request: Request, status: MaintenanceStatus) -> HTMLResponse:
    headers = {} if status.retry_after is None else {"Retry-After": str(status.retry_after)}
    return templates.TemplateResponse(request, "closed.html", {"status": status}, 503, headers)


maintenance = Maintenance(response_handler=page)
app = FastAPI(dependencies=[Depends(maintenance.guard)])


@app.get("/", response_class=HTMLResponse)
async def shop() -> str:
    return "<h1>Tea</h1>"
