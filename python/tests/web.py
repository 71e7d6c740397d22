"""All that a user writes to have tasks behind an API."""

import os

from fastapi import FastAPI
from proj import app

import celeriac.fastapi

api = FastAPI()
api.include_router(celeriac.fastapi.router(app, server=os.environ["PLACE_API"]), prefix="/api")
