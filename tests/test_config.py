"""What a recipe may hold: the order of its fields, their ranges, and the presets with published numbers."""
import json
import math
from dataclasses import fields

import pytest

from sag.config import Recipe, SaGConfig, change, to_json
from sag.presets import presets

FIELDS = """
    image_encoder image_weights image_args image_size image_mean image_std image_block image_stride image_also position_resize image_norm_eps
    image_standardize drop_path freeze_image text_encoder text_weights text_args text_pooling max_text_length freeze_text dim context_dim groups
    slots_per_group iterations sigma_scale slot_heads slot_head_dim interact_heads interact_head_dim fusion_heads fusion_head_dim ff_mult dropout
    decoder_positions entities cluster_position slot_init competition interaction fusion cosine_scale cuts slot_geometry place student edges one_part
    reconstruct dataset split_by root images columns proposals train_split val_split captions long_text synthetic_args group texts_per_photo cache_features
    feature_dir photo_fit cache_photos bad_samples workers batch_size last_batch epochs steps lr image_lr text_lr weight_decay clip warmup cosine_shift
    warmup_kind temperature fixed_target ignore_same_text reconstruction_weight mirror_weight overlap_weight overlap_pairs precision checkpointing compile
    accumulate start seed selection evaluate_every val_photos save_every skip_nonfinite track
""".split()


def test_order_of_the_fields():  # of config.json, of a run's record and of `sag train --help`
    assert [f.name for f in fields(Recipe)] == FIELDS
    assert [f.name for f in fields(SaGConfig)] == FIELDS[:FIELDS.index('reconstruct') + 1]


@pytest.mark.parametrize('field, value, allowed', [
    ('batch_size', 0, '1 or more'), ('groups', 0, '1 or more'), ('iterations', 0, '1 or more'), ('lr', -1., '0 or more'), ('steps', -1, '0 or more'),
    ('lr', math.nan, '0 or more'), ('lr', math.inf, '0 or more'), ('dropout', 1.5, '0 to 1'),
    ('seed', -1, '0 to 4294967295'), ('temperature', 0., '1e-06 or more'),
    ('selection', 'best', 'last or best_val_miou'), ('captions', None, 'captions or phrases or both'),
    ('image_std', (0., 1., 1.), '1e-06 to 10'), ('image_mean', (math.nan,)*3, '-10 to 10'), ('cuts', (0,), '1 or more'), ('image_also', (-1,), '1 or more'),
    ('fusion', 'no', 'True or False'), ('fusion', 1, 'True or False')])
def test_a_value_out_of_range_names_field_and_range(field, value, allowed):
    with pytest.raises(ValueError) as e: change(Recipe(), **{field: value})
    assert str(e.value) == f'{field}={value!r}; choose {allowed}'


@pytest.mark.parametrize('changes, message', [
    (dict(image_mean=(.5,)), 'three numbers wanted'), (dict(image_std=()), 'three numbers wanted'), (dict(dim=10**9), 'dim=1000000000; at most 4096'),
    (dict(groups=10**9), 'num_slots=2000000000; at most 10000'), (dict(cuts=(10**9,)), 'num_slots=.*at most'), (dict(image_size=10**6), 'at most 8192'),
    (dict(iterations=10**9), 'iterations=.*at most'), (dict(text_args=dict(num_labels=10**9)), 'num_labels=1000000000; at most'),
    (dict(text_args=dict(hidden_size=10**5)), 'hidden_size=100000; at most 16384'), (dict(fusion_heads=10**4), 'fusion_heads=10000; at most 64'),
    (dict(text_args=dict(num_hidden_layers=10**4)), 'num_hidden_layers=10000; at most 1000'), (dict(image_args=dict(depths=[1, 10**9])), 'depths=.*at most')])
def test_no_model_beyond_any_computer(changes, message):
    with pytest.raises(ValueError, match=message): change(SaGConfig(), **changes)


@pytest.mark.parametrize('field, value', [
    ('steps', 2.5), ('steps', True), ('lr', '1e-3'), ('root', None), ('image_args', []), ('image_mean', .5), ('image_mean', ('a',))])
def test_a_value_of_another_type_is_an_error(field, value):
    with pytest.raises(TypeError, match=f'{field}=.*wanted'): change(Recipe(), **{field: value})


def test_presets_survive_json():
    for name, preset in presets.items(): assert change(Recipe(), **json.loads(to_json(preset))) == preset, name


def test_a_recipe_of_an_earlier_version_reads_as_what_it_did(tmp_path):
    from sag.record import BEFORE, Run
    then = json.loads(to_json(change(presets['unc'], lr=3e-4)))
    for later in ('cosine_shift', 'last_batch', 'long_text', 'cuts', 'place'): del then[later]
    (tmp_path/'run.json').write_text(json.dumps(dict(recipe=then)))
    assert Run.open(tmp_path).recipe == change(presets['unc'], lr=3e-4, **BEFORE)
