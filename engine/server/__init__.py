"""The engine behind HTTP, as OpenAI's API; the only part that needs FastAPI and uvicorn."""

from engine.server.app import create_app
from engine.server.executor import ServingExecutor, Update
from engine.server.front import Limits
from engine.server.loop import EngineLoop
from engine.server.serve import serve

__all__ = ["EngineLoop", "Limits", "ServingExecutor", "Update", "create_app", "serve"]
