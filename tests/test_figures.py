"""Figures survive whatever people type and whatever shape their photos have."""
import warnings
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from sag.figures import quoted, show_segmentation, show_target
from sag.masks import Segments

HOSTILE = ['left dog', 'the $5 sign and the $10 sign', '$', '$$', 'price $_{', r'a $\frac{1}$ b', '$x_$', 'us$ and a$', '$^2$ ^', r'\$5', '$\n$',
           'a\nb\n\nc', '☃', '\U0001f436', '\x00', 'a\tb', '<script>alert(1)</script>', 'مرحبا', 'שלום עולם', '左边的狗', '\u202eabc',
           'a' * 500, 'word ' * 500, '_{', '%s', '{x}', '\ud800']


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # glyphs that the font lacks
        yield
    plt.close('all')


@pytest.mark.parametrize('sentence', HOSTILE, ids=ascii)
def test_sentence_is_drawn_as_text(sentence):
    ax = show_target(plt.subplots(figsize=(2, 2))[1], Image.new('RGB', (64, 48)), None, quoted(sentence))
    ax.figure.savefig(BytesIO(), format='png')
    text, is_math = ax.title._preprocess_math(ax.title.get_text())
    assert not is_math
    assert text.count('$') == sentence[:50].count('$')


@pytest.mark.parametrize('sentence', HOSTILE, ids=ascii)
def test_segments_show_themselves(sentence):
    mask = torch.zeros(1, 48, 64).bool()
    assert Segments(mask.float(), mask, [sentence], Image.new('RGB', (64, 48)))._repr_png_().startswith(b'\x89PNG')


@pytest.mark.parametrize('size', [(1, 5000), (5000, 1), (2, 1), (640, 480)])
def test_shape_of_photo_does_not_blow_up_the_figure(size):
    w, h = size
    score = np.linspace(0, 1, w * h, dtype=np.float32).reshape(h, w)
    fig = show_segmentation(Image.new('RGB', size), torch.full((4, 6, 6), .25), torch.full((4,), .25), score, score >= .5, score >= .4, 'a dog')
    fig.savefig(out := BytesIO(), format='png', dpi=120)
    assert max(Image.open(out).size) <= 720
    mask = torch.from_numpy(score >= .5)[None]
    with Image.open(BytesIO(Segments(mask.float(), mask, ['dog'], Image.new('RGB', size))._repr_png_())) as shown:
        assert max(shown.size) <= 1000
