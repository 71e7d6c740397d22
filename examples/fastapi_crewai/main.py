"""The web application: a page, and the tasks behind it."""

import pathlib

import celeriac.fastapi
from fastapi import FastAPI
from fastapi.responses import FileResponse
from newsroom_app import app

api = FastAPI(title="Newsroom")
# Submit, status, result, stream and revoke, under /tasks.
api.include_router(celeriac.fastapi.router(app, tasks=["newsroom.article"]))


@api.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(pathlib.Path(__file__).with_name("page.html"))
