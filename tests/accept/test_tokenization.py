"""2,000 texts are split alike before and after a conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tokenization
from tests.support.checkpoints import Shape, write_checkpoint, write_sentencepiece
from tests.support.smollm2 import write_tiny

TEXTS = 2000

pytestmark = pytest.mark.accept


def test_bpe(tmp_path: Path, smollm2: Path) -> None:
    folder = write_tiny(tmp_path / "bpe", smollm2)
    assert tokenization.of_bpe(folder, tmp_path, count=TEXTS) == []


def test_sentencepiece(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sentencepiece", Shape(layers=1, vocabulary=420))
    write_sentencepiece(folder, 400)
    assert tokenization.of_sentencepiece(folder, tmp_path, count=TEXTS) == []
    assert tokenization.of_byte_fallback_bpe(folder, tmp_path, count=TEXTS) == []
