"""Names: what is one, what it means, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localllama.errors import InvalidName
from localllama.names import Source, parse, split_parts

GOOD = [
    ("llama2", Source.CATALOG, "llama2", ""),
    ("llama2:7b-chat-q4_K_M", Source.CATALOG, "llama2", "7b-chat-q4_K_M"),
    ("Llama2:7B", Source.CATALOG, "Llama2", "7B"),
    ("me/mine:v1.2+x", Source.CATALOG, "me/mine", "v1.2+x"),
    ("x" * 96, Source.CATALOG, "x" * 96, ""),
    ("hf.co/owner/repo", Source.HUGGINGFACE, "owner/repo", ""),
    ("hf.co/owner/repo:Q4_K_M", Source.HUGGINGFACE, "owner/repo", "Q4_K_M"),
    ("huggingface.co/owner/repo:sub/a.gguf", Source.HUGGINGFACE, "owner/repo", "sub/a.gguf"),
    ("HF.co/owner/repo/a.gguf", Source.HUGGINGFACE, "owner/repo", "a.gguf"),
    ("https://huggingface.co/o/r", Source.HUGGINGFACE, "o/r", ""),
    ("https://huggingface.co/o/r/tree/main", Source.HUGGINGFACE, "o/r", ""),
    (
        "https://huggingface.co/o/r/resolve/main/d/a.gguf?download=true",
        Source.HUGGINGFACE,
        "o/r",
        "d/a.gguf",
    ),
    ("https://huggingface.co/o/r/blob/main/a.gguf", Source.HUGGINGFACE, "o/r", "a.gguf"),
    ("ollama.com/llama3.2", Source.OLLAMA, "llama3.2", "latest"),
    ("ollama.com/library/llama3.2:1b", Source.OLLAMA, "llama3.2", "1b"),
    ("registry.ollama.ai/me/mine:x", Source.OLLAMA, "me/mine", "x"),
    ("https://ollama.com/library/phi3:mini", Source.OLLAMA, "phi3", "mini"),
    ("https://h.example/a/b.gguf", Source.URL, "https://h.example/a/b.gguf", ""),
    ("HTTP://h.example:8080/b.GGUF?k=v#top", Source.URL, "HTTP://h.example:8080/b.GGUF?k=v", ""),
    ("pypi:pkg==1.0#d/a.gguf", Source.PACKAGE, "pkg==1.0", "d/a.gguf"),
    ("PyPI:my_pkg==1.0.post1+cpu#a.gguf", Source.PACKAGE, "my_pkg==1.0.post1+cpu", "a.gguf"),
    ("./a.gguf", Source.LOCAL, "./a.gguf", ""),
    ("../up/a folder/", Source.LOCAL, "../up/a folder/", ""),
    ("/models/llama", Source.LOCAL, "/models/llama", ""),
    ("~/a.gguf", Source.LOCAL, "~/a.gguf", ""),
    ("C:\\models\\a.gguf", Source.LOCAL, "C:\\models\\a.gguf", ""),
    ("a.gguf", Source.LOCAL, "a.gguf", ""),
    ("models/a.gguf", Source.LOCAL, "models/a.gguf", ""),
]

BAD = {
    "empty": "",
    "blank": "  ",
    "traversal": "a/../b",
    "traversal in the family": "..",
    "traversal in the tag": "a:../b",
    "two dots": "a..b",
    "traversal in the repository": "hf.co/../etc",
    "traversal in the file": "hf.co/o/r:../../x.gguf",
    "traversal by resolve": "https://huggingface.co/o/r/resolve/main/../../x.gguf",
    "traversal in ollama": "ollama.com/../x",
    "traversal in a wheel": "pypi:p==1#../x.gguf",
    "absolute in a wheel": "pypi:p==1#/x.gguf",
    "backslash": "a\\b",
    "backslash in a wheel": "pypi:p==1#..\\x.gguf",
    "newline": "llama2\n",
    "nul": "a\0b",
    "escape sequence": "./\x1b[31mred.gguf",
    "C1 control": "./a\x9b31m.gguf",
    "bidi override": "./a\u202efugg.gguf",
    "zero width": "lla\u200bma2",
    "line separator": "./a\u2028b.gguf",
    "surrogate": "./a\udce9.gguf",
    "Cyrillic look-alike": "ll\u0430ma2",
    "full-width look-alike": "\uff4clama2",
    "look-alike in the repository": "hf.co/\u043ewner/repo",
    "look-alike digit": "llama\u0662",
    "too long": "./" + "x" * 511,
    "family too long": "x" * 97,
    "tag too long": "a:" + "x" * 97,
    "reserved": "con",
    "reserved with a suffix": "NUL.txt:7b",
    "reserved namespace": "com1/model",
    "leading dot": ".hidden",
    "trailing dot": "model.",
    "leading dash": "-model",
    "space": "a b",
    "empty tag": "a:",
    "two colons": "a:b:c",
    "too many slashes": "a/b/c",
    "empty namespace": "a//b",
    "no repository": "hf.co/owner",
    "no owner": "hf.co//repo",
    "another revision": "https://huggingface.co/o/r/resolve/abc123/x.gguf",
    "nothing on ollama": "ollama.com/",
    "too deep on ollama": "ollama.com/a/b/c",
    "no version": "pypi:pkg#a.gguf",
    "no member": "pypi:pkg==1",
    "an option for pip": "pypi:-r==1#a.gguf",
    "a marker for pip": "pypi:a==1;x#a.gguf",
    "another scheme": "ftp://h/a.gguf",
    "a file address": "file:///etc/a.gguf",
    "no host": "https:///a.gguf",
    "a password": "https://me:secret@h/a.gguf",
    "not a GGUF": "https://h/a.zip",
    "half an IPv6 address": "http://[::1/a.gguf",
    "a port that is none": "http://h:port/a.gguf",
}


@pytest.mark.parametrize(("text", "source", "repo", "tag"), GOOD, ids=[good[0] for good in GOOD])
def test_a_name_means(text: str, source: Source, repo: str, tag: str) -> None:
    name = parse(text)
    assert (name.source, name.repo, name.tag) == (source, repo, tag)
    assert parse(str(name)) == name


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_name_is_refused_with_a_printable_reason(text: str) -> None:
    with pytest.raises(InvalidName) as refused:
        parse(text)
    assert refused.value.message.isprintable()
    assert "secret" not in refused.value.message


def test_case_does_not_tell_names_apart_but_does_for_paths() -> None:
    assert parse("Llama2:7B").key == parse("llama2:7b").key
    assert parse("hf.co/O/R:q4_k_m").key == parse("hf.co/o/r:Q4_K_M").key
    assert parse("./A.gguf").key != parse("./a.gguf").key


def test_split_parts() -> None:
    assert split_parts("d/x-00002-of-00003.GGUF") == (
        "d/x-00001-of-00003.GGUF",
        "d/x-00002-of-00003.GGUF",
        "d/x-00003-of-00003.GGUF",
    )
    for single in ("x.gguf", "x-00000-of-00002.gguf", "x-00003-of-00002.gguf", "x-1-of-2.gguf"):
        assert split_parts(single) == (single,)


_PIECES = st.sampled_from(
    [
        "hf.co/",
        "ollama.com/",
        "pypi:",
        "https://",
        "==1",
        "#",
        "a",
        "B.gguf",
        "/",
        ":",
        "..",
        "~",
        "[",
    ]
)


@settings(max_examples=1000, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(_PIECES, max_size=8).map("".join)))
@example("http://[")
@example("http://h:99999/a.gguf")
@example("hf.co/a/b/resolve")
def test_any_text_is_a_stable_name_or_refused(text: str) -> None:
    try:
        name = parse(text)
    except InvalidName:
        return
    assert parse(str(name)) == name
