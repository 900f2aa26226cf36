"""The engine behind HTTP, as OpenAI's API; the only part that needs FastAPI and uvicorn.

`engine.server.loop.EngineLoop` is the real engine behind it (and needs torch, which nothing else here does).
"""

from engine.server.app import create_app
from engine.server.executor import Deliver, ServingExecutor, Update
from engine.server.front import Limits
from engine.server.serve import serve

__all__ = ["Deliver", "Limits", "ServingExecutor", "Update", "create_app", "serve"]
