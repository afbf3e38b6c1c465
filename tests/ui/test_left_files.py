"""What a visitor uploads and never uses goes after an hour, and all with the server."""

import datetime
from pathlib import Path

import httpx
import pytest
from gradio import route_utils

from hyperlora.model import Model
from hyperlora.ui.page import build_page, launch


def test_files_of_visitors_go_after_an_hour_and_with_the_server(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def left() -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_file()]

    demo = build_page(model)
    try:
        url = launch(demo)

        def upload(name: str) -> Path:
            given = httpx.post(f"{url}gradio_api/upload", files={"files": (name, name.encode())}, timeout=300)
            return Path(given.json()[0])

        old = upload("old.zip")
        frequency, age = demo.delete_cache
        assert frequency <= 600 and age == 3600  # how often Gradio does what follows, and how old files may get

        hours = 0.99

        class Later(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
                return super().now(tz) + datetime.timedelta(hours=hours)

        monkeypatch.setattr(route_utils, "datetime", Later)
        route_utils.delete_files_created_by_app(demo, age)
        assert left() == [old]
        hours = 1.01
        route_utils.delete_files_created_by_app(demo, age)
        assert left() == []
        new = upload("new.zip")
        assert left() == [new]
    finally:
        demo.close()
    assert left() == []
