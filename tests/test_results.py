"""Results are data: what `segment` and the evaluation write, pycocotools reads, and what others write is measured by the same code."""
import json
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sag import segment
from sag.masks import read_results, write_json, write_segments
from sag.predict import as_photo, photo_files, segment_many, trace
from sag.small import samples

TEMPLE, COFFEE, ASTRONAUT = (s.path for s in samples())


@pytest.fixture(scope='module')
def found():
    return segment(COFFEE, ['cup', 'spoon on the right'])


def test_contract(found):
    scores, masks = found
    height, width = Image.open(COFFEE).size[::-1]
    assert scores.shape == masks.shape == (2, height, width)
    assert masks.dtype == torch.bool and 0 <= scores.min() and scores.max() <= 1
    assert torch.equal(masks, scores >= .5)


def test_words_of_place_count_in_every_way_in(found):
    assert torch.equal(found.scores, trace(COFFEE, found.expressions, 'small').scores)
    sides = segment(COFFEE, ['left cup', 'right cup']).scores
    x = torch.linspace(-1, 1, sides.shape[2])
    left, right = ((s * x).sum() / s.sum() for s in sides)
    assert left < right


def test_round_trip_through_pycocotools(found, tmp_path):
    many = segment_many([COFFEE, TEMPLE], found.expressions, batch_size=2)
    write_segments(many, json=tmp_path / 'out.json', mask=tmp_path / 'masks')
    alone = COCO(tmp_path / 'out.dataset.json')
    for coco in alone, alone.loadRes(str(tmp_path / 'out.json')):
        anns = coco.loadAnns(coco.getAnnIds(imgIds=[0]))
        assert [a['area'] for a in anns] == found.area.tolist()
        for ann, mask, box in zip(anns, found.masks.numpy(), found.boxes, strict=True):
            assert np.array_equal(coco.annToMask(ann).astype(bool), mask)
            assert ann['bbox'] == pytest.approx(box)
    pictures = sorted((tmp_path / 'masks').glob('coffee*'))
    assert [np.array_equal(np.asarray(Image.open(p)) > 0, m) for p, m in zip(pictures, found.masks.numpy(), strict=True)] == [True, True]


def test_round_trip_through_supervision(found, tmp_path):
    supervision = pytest.importorskip('supervision', reason='supervision is not installed')
    write_segments([found], json=tmp_path / 'out.json')
    data = supervision.DetectionDataset.from_coco(str(COFFEE.parent), str(tmp_path / 'out.dataset.json'), force_masks=True)
    (_, _, read), = data
    assert data.classes == found.expressions
    assert np.array_equal(read.mask, found.masks.numpy())


def test_batches_and_inputs_agree(found):
    photo = as_photo(COFFEE)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    for image in str(COFFEE), photo, np.array(photo), pixels:
        assert torch.equal(segment(image, found.expressions).scores, found.scores)
    first, *_ = segment_many([COFFEE, ASTRONAUT, TEMPLE], found.expressions, batch_size=3)
    assert (first.scores - found.scores).abs().max() < 1e-3


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_finds_the_same(found, precision):
    half = segment(COFFEE, found.expressions, precision=precision)
    both, either = (half.masks & found.masks).sum(), (half.masks | found.masks).sum()
    assert both / either > .8


@pytest.mark.parametrize('content', ['', '[]', '{}', '3', '[{"sent_id": 1}]', '[{"segmentation": [[1, 1, 5, 1, 5, 5]]}]', '[[1]]', '{"annotations": null}'])
def test_bad_results_are_one_clear_error(tmp_path, content):
    (path := tmp_path / 'bad.json').write_text(content)
    with pytest.raises(ValueError, match='bad.json'): read_results(path)


def test_results_are_whole_or_absent(tmp_path):
    with pytest.raises(TypeError): write_json(tmp_path / 'out.json', [object()])
    assert not list(tmp_path.iterdir())


def test_a_picture_looks_the_same_as_its_file(tmp_path):
    deep = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(4, 16))
    clear = Image.fromarray(np.dstack([np.zeros((4, 16, 3), np.uint8), np.tile(np.uint8([0, 255]), (4, 8))]))
    for name, picture in dict(deep=deep, clear=clear).items():
        picture.save(tmp_path / f'{name}.png')
        assert np.array_equal(as_photo(picture), as_photo(tmp_path / f'{name}.png')), name
    assert np.array_equal(as_photo(np.asarray(clear)), as_photo(clear))


@pytest.mark.parametrize('picture', [Image.new('RGB', (0, 0)), Image.new('1', (9000, 9000)), Image.new('La', (2, 2))])
def test_pictures_that_are_no_photos(picture):
    with pytest.raises(ValueError, match='pixels are possible|cannot be decoded'): as_photo(picture)


def test_small_values_in_a_deep_file_are_of_8_bits(tmp_path):
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(tmp_path / 'deep.tif')
    assert np.array_equal(np.asarray(as_photo(tmp_path / 'deep.tif'))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize('image', [np.zeros((4, 5)), np.zeros((0, 5), np.uint8), np.zeros((4, 5, 2), np.uint8), torch.full((3, 4, 5), 2.), None, 3, b'photo'])
def test_what_is_no_photo(image):
    with pytest.raises(TypeError, match='a photo is a path'): as_photo(image)


def test_addresses_are_fetched_only_if_allowed(tmp_path, monkeypatch):
    address = 'https://example.org/cat.jpg'
    for read in as_photo, photo_files:
        with pytest.raises(ValueError, match='urls=True'): read(address)
    monkeypatch.setattr('sag.predict.urlopen', lambda url, timeout: urllib.request.urlopen(TEMPLE.as_uri()))
    assert as_photo(address, urls=True).size == as_photo(TEMPLE).size
    (page := tmp_path / 'page').write_text('<html>')
    monkeypatch.setattr('sag.predict.urlopen', lambda url, timeout: urllib.request.urlopen(page.as_uri()))
    with pytest.raises(ValueError, match=address): as_photo(address, urls=True)


def test_run_lengths_are_what_pycocotools_writes(found):
    for record, mask in zip(found.to_coco(7), found.masks.numpy(), strict=True):
        theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert record['segmentation'] == dict(size=list(theirs['size']), counts=theirs['counts'].decode())
        assert record['image_id'] == 7 and json.loads(json.dumps(record)) == record


def test_an_exported_file_says_that_words_of_place_are_left_out():
    from sag.share import _exportable
    with pytest.warns(UserWarning, match='words of place'): _exportable('small', 'pt2')
