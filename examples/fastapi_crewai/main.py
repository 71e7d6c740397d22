"""The web application: a page, and the tasks behind it."""

import os
import pathlib

import celeriac.fastapi
from fastapi import FastAPI
from fastapi.responses import FileResponse
from newsroom_app import app

api = FastAPI(title="Newsroom")
api.include_router(
    celeriac.fastapi.router(app, url=os.environ.get("CELERIAC_URL", "http://127.0.0.1:8787")), prefix="/tasks"
)


@api.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(pathlib.Path(__file__).with_name("page.html"))
