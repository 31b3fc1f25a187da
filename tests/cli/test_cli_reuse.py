import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

import tippingpoint
from checkpoints import make_bert
from tippingpoint.models.reuse_plan import ReusePlan
from tippingpoint.models.sharing import reuse_attention

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = "alpha beta gamma delta epsilon zeta eta theta"
TINY = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    names = WORDS.split()
    for number in range(6):
        (folder / f"{number}.txt").write_text(" ".join(names[(3 * number + 5 * place) % 8] for place in range(40)))
    (folder / "long.md").write_text(f"{WORDS} " * 30)
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    make_bert(folder, [WORDS])
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    noise = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", noise.normal(0, 0.1, 8000), 16_000)
    soundfile.write(folder / "b.flac", noise.normal(0, 0.1, (22_050, 2)), 44_100)
    soundfile.write(folder / "click.wav", noise.normal(0, 0.1, 100), 16_000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(noise.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def test_a_plan_is_printed_and_written(run, bert, texts, tmp_path):
    plan, figure = tmp_path / "plan.json", tmp_path / "plan.svg"
    words = [str(bert), str(texts), "--num-maps", "2", "--output", str(plan), "--figure", str(figure)]
    code, out, err = run("reuse", "plan", *words)
    assert code == 0, err
    made = ReusePlan.from_json(plan.read_text())
    assert made.num_maps == 2
    first, *_ = out.splitlines()
    assert first.startswith("BertModel: 4 layers with 2 heads; 7 inputs of ")
    assert first.endswith("(7 text inputs, 1 cut to 64 tokens)")
    assert out.count("this plan") == 1
    assert str(made) in out
    for title in ("Numbers of maps", "Overlap of attention maps", "Diagonality"):
        assert title in out
    assert out.splitlines()[-1] == f"next: tippingpoint reuse apply {bert} {plan} --output DIR"
    assert f"warning: left out 1 item: {texts / 'empty.txt'} (empty document)" in err
    assert figure.read_text().startswith("<svg")


def test_json_is_the_plan_and_nothing_else(run, bert, texts, tmp_path):
    plan = tmp_path / "plan.json"
    code, out, _ = run("reuse", "plan", str(bert), str(texts), "--output", str(plan), "--json")
    record = json.loads(out)
    made = ReusePlan.from_json(plan.read_text())
    assert code == 0
    assert record["plan"]["groups"] == [list(group) for group in made.groups]
    assert made.num_maps == 2  # one for every two layers
    assert [choice["num_maps"] for choice in record["plan"]["choices"]] == [1, 2, 3, 4]
    assert len(record["plan"]["matched"]) == len(record["plan"]["unmatched"]) == 4
    assert record["next_command"].startswith("tippingpoint reuse apply ")


def test_the_same_data_give_the_same_plan(run, bert, texts, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        assert run("reuse", "plan", str(bert), str(texts), "--max-inputs", "3", "--output", str(file))[0] == 0
    assert files[0].read_text() == files[1].read_text()
    assert ReusePlan.from_json(files[0].read_text()).similarity.inputs == 3


def test_inputs_are_cut_where_it_is_asked(run, bert, texts):
    words = ["--max-length", "20", "--no-match-heads", "--num-maps", "3"]
    code, out, _ = run("reuse", "plan", str(bert), str(texts), *words)
    assert code == 0
    assert "(7 text inputs, 7 cut to 20 tokens)" in out
    following = shlex.split(out.splitlines()[-1])
    assert following[:3] == ["next:", "tippingpoint", "convert"]
    assert following[-3].startswith("reuse:group=")


def test_a_column_of_a_table_is_read(run, bert, tmp_path):
    records = [{"body": f"{WORDS} {WORDS}"}, {"body": "beta alpha gamma"}, {"body": ""}]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, records)))
    code, out, err = run("reuse", "plan", str(bert), str(tmp_path / "table.jsonl"), "--column", "body")
    assert code == 0, err
    assert "2 inputs of 12 positions on average, 23 of their positions examined" in out


@pytest.mark.parametrize("prepared", [True, False])
def test_recordings_are_read_as_a_speech_model_takes_them(prepared, run, recordings, tmp_path):
    config = transformers.HubertConfig.from_dict({**TINY, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16})
    transformers.HubertModel(config).save_pretrained(tmp_path / "hubert")
    if prepared:
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path / "hubert")
    words = ["reuse", "plan", str(tmp_path / "hubert"), str(recordings), "--max-length", "0.4"]
    code, out, err = run(*words)
    assert code == 0, err
    # 0.4 s are 6,400 samples, of which the front end makes 19 frames.
    assert "2 inputs of 19 positions on average" in out
    assert "(2 speech inputs, 2 cut to 0.400 s)" in out
    assert "left out 2 items: " in err
    assert "shorter than 0.1 s" in err
    assert ("preprocessor_config.json is missing: recordings are normalised" in err) is not prepared


def test_a_recording_is_the_same_with_and_without_the_library_s_extractor(recordings, tmp_path):
    from tippingpoint.data.model_inputs import read_model_inputs

    config = {"model_type": "hubert"}
    plain = list(read_model_inputs([recordings], tmp_path, config, "input_values"))
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path)
    prepared = list(read_model_inputs([recordings], tmp_path, config, "input_values"))
    assert sorted(each["input_values"].shape for each in plain) == [(1, 8000), (1, 8000)]
    for ours, theirs in zip(plain, prepared, strict=True):
        np.testing.assert_allclose(ours["input_values"], theirs["input_values"], atol=1e-5)


def test_another_sample_rate_and_two_channels_are_the_same_sound(tmp_path):
    from tippingpoint.data.audio import read_waveform

    seconds = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, 0.5 * tone], axis=1), 44_100)
    found = read_waveform(str(tmp_path / "tone.wav"), 16_000, 30)
    assert isinstance(found, tuple)
    waveform, cut = found
    assert (len(waveform), waveform.dtype, cut) == (16_000, np.float32, False)
    expected = 0.75 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(waveform - expected)[200:-200].max() < 0.01
    shorter = read_waveform(str(tmp_path / "tone.wav"), 16_000, 0.5)
    assert isinstance(shorter, tuple)
    assert (len(shorter[0]), shorter[1]) == (8000, True)


@pytest.mark.parametrize("prepared", [True, False])
def test_images_are_read_as_a_vision_model_takes_them(prepared, run, pictures, tmp_path):
    config = transformers.ViTConfig.from_dict({**TINY, "image_size": 32, "patch_size": 8})
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    if prepared:
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    code, out, err = run("reuse", "plan", str(tmp_path / "vit"), str(pictures))
    assert code == 0, err
    assert "2 inputs of 17 positions on average" in out
    assert "(2 vision inputs)" in out
    assert "broken.png (cannot be decoded" in err
    assert ("preprocessor_config.json is missing: images are resized to 32 x 32 pixels" in err) is not prepared
    code, _, err = run("reuse", "plan", str(tmp_path / "vit"), str(pictures), "--max-length", "9")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: a max_length is for text and speech, got 9.0 for vision; leave it out",
    )


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["BERT", "TEXTS", "--num-maps", "5"], 2, "num_maps must be a whole number from 1 to 4"),
        (["BERT", "TEXTS", "--num-maps", "0"], 2, "num_maps must be a whole number from 1 to 4"),
        (["BERT", "TEXTS", "--max-inputs", "0"], 2, "the number of inputs must be at least 1, got 0"),
        (["BERT", "TEXTS", "--max-length", "1"], 2, "must not be cut to fewer than 2 tokens, got 1"),
        (["BERT", "TEXTS", "--max-length", "-3"], 2, "the length to cut to must be positive, got -3"),
        (["BERT", "TEXTS", "--figure", "plan.gif"], 2, "a figure's file must end in one of"),
        (["BERT", "TEXTS", "--output", "nowhere/plan.json"], 2, "the folder 'nowhere' does not exist"),
        (["BERT", "nothing"], 2, "there is no file or folder 'nothing'"),
        (["BERT", "TEXTS/empty.txt"], 1, "no text input could be read, 1 item failed"),
        (["nowhere", "TEXTS"], 2, "there is no folder 'nowhere'"),
        (["BERT"], 2, "Missing argument 'DATA...'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, code, complaint, run, bert, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("BERT", str(bert)).replace("TEXTS", str(texts)) for word in words]
    found, out, err = run("reuse", "plan", *words)
    assert (found, out) == (code, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert complaint in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_a_tokenizer_says_so(run, texts, tmp_path):
    make_bert(tmp_path / "bert", [WORDS])
    for path in (tmp_path / "bert").glob("*token*"):
        path.unlink()
    code, out, err = run("reuse", "plan", str(tmp_path / "bert"), str(texts))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: the tokenizer '{tmp_path / 'bert'}' ")


def test_a_plan_is_applied_to_the_checkpoint(run, bert, texts, tmp_path):
    plan, output = tmp_path / "plan.json", tmp_path / "shared"
    assert run("reuse", "plan", str(bert), str(texts), "--num-maps", "2", "--output", str(plan))[0] == 0
    made = ReusePlan.from_json(plan.read_text())
    code, out, err = run("reuse", "apply", str(bert), str(plan), "--output", str(output))
    assert code == 0, err
    assert out.splitlines()[0] == str(made)
    assert made.choice.parameters_saved == 2 * 2 * (32 * 32 + 32)
    model, whole = tippingpoint.load(output), tippingpoint.load(bert)
    assert model.num_parameters() == whole.num_parameters() - made.choice.parameters_saved
    expected = reuse_attention(whole, made)
    ids = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 3]])
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids)[0], expected(input_ids=ids)[0])
    code, _, err = run("reuse", "plan", str(output), str(texts))
    assert code == 2
    assert "in place of its own attention; plan with the checkpoint that it was made from" in err


def test_a_plan_for_another_number_of_maps_is_applied(run, bert, texts, tmp_path):
    plan = tmp_path / "plan.json"
    assert run("reuse", "plan", str(bert), str(texts), "--output", str(plan))[0] == 0
    words = [str(bert), str(plan), "--num-maps", "1", "--output", str(tmp_path / "shared"), "--json"]
    code, out, _ = run("reuse", "apply", *words)
    record = json.loads(out)
    assert code == 0
    assert record["groups"] == [[0, 1, 2, 3]]
    assert record["parameters_before"] - record["parameters_after"] == record["choice"]["parameters_saved"]


@pytest.mark.parametrize(
    ("content", "code", "complaint"),
    [(None, 2, "cannot be read: No such file"), ("{}", 1, "JSON with the format 'tippingpoint reuse plan'")],
)
def test_a_file_that_is_no_plan_is_not_applied(content, code, complaint, run, bert, tmp_path):
    plan = tmp_path / "plan.json"
    if content is not None:
        plan.write_text(content)
    found, out, err = run("reuse", "apply", str(bert), str(plan), "--output", str(tmp_path / "shared"))
    assert (found, out) == (code, "")
    assert complaint in err.splitlines()[-1]
    assert not (tmp_path / "shared").exists()


def test_a_plan_for_another_model_is_not_applied(run, bert, texts, tmp_path):
    plan = tmp_path / "plan.json"
    make_bert(tmp_path / "deep", [WORDS], layers=6)
    assert run("reuse", "plan", str(tmp_path / "deep"), str(texts), "--output", str(plan), "--num-maps", "2")[0] == 0
    code, out, _ = run("reuse", "apply", str(bert), str(plan), "--output", str(tmp_path / "shared"))
    assert (code, out) == (2, "")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_of_a_model_with_a_decoder_the_encoder_is_planned(name, run, texts, recordings, tmp_path):
    shape: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    }
    folder = tmp_path / name
    if name == "bart":
        make_bert(folder, [WORDS])
        transformers.BartModel(transformers.BartConfig(**shape, vocab_size=60)).save_pretrained(folder)
    else:
        transformers.WhisperModel(transformers.WhisperConfig(**shape, vocab_size=60, pad_token_id=0)).save_pretrained(
            folder
        )
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
    code, out, err = run("reuse", "plan", str(folder), str(texts if name == "bart" else recordings))
    assert code == 0, err
    assert out.startswith("BartEncoder: 4 layers" if name == "bart" else "WhisperEncoder: 4 layers")
