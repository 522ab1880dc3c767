"""The gallery is made by the code that it shows; here at small size, with the bundled model."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylemamba import StyleMambaPipeline

SCRIPT = Path(__file__).parents[1] / "docs" / "make_gallery.py"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("make_gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny():
    pipe = StyleMambaPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_application_runs_and_is_shown(gallery, tiny, tmp_path):
    page = gallery.make_gallery(tiny, tmp_path, side=96, cell=96).read_text()
    assert len(gallery.APPLICATIONS) == page.count("```python")
    for application in gallery.APPLICATIONS:
        name = application.__name__.replace("_", "-")
        assert f"(gallery/{name}.webp)" in page
        assert Image.open(tmp_path / "gallery" / f"{name}.webp").height > 96
    assert '    "photo": photo,\n' in page and "def one_prompt" not in page


def test_the_page_in_docs_shows_what_the_script_makes(gallery):
    page = (SCRIPT.parent / "gallery.md").read_text()
    for application in gallery.APPLICATIONS:
        assert gallery._code(application) in page, (
            f"run docs/make_gallery.py: {application.__name__} has changed"
        )
        assert (SCRIPT.parent / "gallery" / f"{application.__name__.replace('_', '-')}.webp").is_file()


def edges(image):
    grey = np.asarray(image.convert("L"), float)
    across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
    return np.maximum(across, down) > 50


def test_the_text_of_a_screen_stays_legible(gallery, tiny):
    """Edges of the page inside its text, found again in the result: F1."""
    pictures = gallery.user_interface(tiny, gallery.Inputs(640))
    page, styled, protected = (edges(pictures[name]) for name in ("page", "style", "ui"))
    text = np.zeros_like(page)
    text[80:165, 20:320] = True

    def f1(found):
        both = (found & page & text).sum()
        return 2 * both / ((found & text).sum() + (page & text).sum())

    assert f1(protected) > 0.98 and f1(protected) > f1(styled)
    assert np.abs(np.asarray(pictures["ui"], float) - np.asarray(pictures["page"], float))[180:].mean() > 4
