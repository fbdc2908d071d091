"""The whole model: batches, positions, LoRA, generation, gradients, sizes. Weights are random, so text is too."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    TextStreamer,
)

from fastslm.model.lora import is_lora_key, lora_layers, lora_parameters
from fastslm.model.modeling import SPEECH_INPUTS, FastSLMForConditionalGeneration, positions

TEXT_KINDS = ("qwen3", "llama")
PROMPTS = (("transcribe", {}), ("ask", {"question": "What was said at the very beginning?"}), ("summarize", {}))
ANSWERS = ("a", "something longer than the others", "of middle length")


@pytest.fixture
def texts(processor):
    return [processor.build_prompt(task, **options) for task, options in PROMPTS]


@pytest.fixture
def waves(clips):
    return [clips[name] for name in ("short", "long", "middle")]


def training_batch(processor, texts, waves, side="right"):
    """Inputs and labels; only the answer is labelled."""
    answers = [f"{answer}<|im_end|>" for answer in ANSWERS]
    inputs = processor([t + a for t, a in zip(texts, answers, strict=True)], waves, padding_side=side)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        length = len(processor.tokenizer(answer)["input_ids"])
        real = inputs["attention_mask"][row].nonzero().flatten()[-length:]
        labels[row, real] = inputs["input_ids"][row, real]
    return inputs, labels


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_clip_in_a_batch_gives_the_logits_that_it_gives_alone(kind, side, make_model, processor, texts, waves):
    model = make_model(kind)
    inputs = processor(texts, waves, padding_side=side)
    with torch.no_grad():
        together = model(**inputs).logits
        for row, (text, wave) in enumerate(zip(texts, waves, strict=True)):
            alone = model(**processor(text, wave)).logits[0]
            real = inputs["attention_mask"][row].bool()
            torch.testing.assert_close(together[row][real], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_greedy_text_does_not_depend_on_the_batch_nor_on_its_order(kind, make_model, processor, texts, waves):
    model = make_model(kind)
    options = {"max_new_tokens": 12, "do_sample": False}
    alone = []
    for text, wave in zip(texts, waves, strict=True):
        inputs = processor(text, wave)
        alone.append(model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({tuple(ids) for ids in alone}) == 3, "the clips must not all say the same for this test to mean anything"
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        inputs = processor([texts[i] for i in order], [waves[i] for i in order])
        made = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        assert [ids[: len(alone[i])] for ids, i in zip(made.tolist(), order, strict=True)] == [alone[i] for i in order]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_clips_loss_does_not_depend_on_its_batch(kind, make_model, processor, texts, waves):
    model = make_model(kind)
    inputs, labels = training_batch(processor, texts, waves)
    with torch.no_grad():
        together = model(**inputs, labels=labels).loss.item()
        total, count = 0.0, 0
        for row in range(3):
            real = inputs["attention_mask"][row].bool()
            ids, row_labels = inputs["input_ids"][row][real][None], labels[row][real][None]
            one = model(input_ids=ids, input_features=processor.features(waves[row]), labels=row_labels)
            tokens = int((row_labels != -100).sum())
            total, count = total + one.loss.item() * tokens, count + tokens
    assert together == pytest.approx(total / count, abs=1e-5)


def test_the_loss_is_the_mean_over_labelled_tokens_or_their_sum_over_a_given_number(
    make_model, processor, texts, waves
):
    model = make_model()
    inputs, labels = training_batch(processor, texts, waves)
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        log_probs = output.logits[:, :-1].log_softmax(-1)
        chosen = log_probs.gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
        labelled = labels[:, 1:] != -100
        assert output.loss.item() == pytest.approx(-chosen[labelled].mean().item(), abs=1e-5)
        over_100 = model(**inputs, labels=labels, num_items_in_batch=100).loss.item()
    assert over_100 == pytest.approx(-chosen[labelled].sum().item() / 100, abs=1e-5)


def test_keeping_only_the_last_logits_leaves_the_loss_as_it_is(make_model, processor, texts, waves):
    model = make_model()
    inputs, labels = training_batch(processor, texts, waves)
    first = int((labels != -100).any(0).nonzero()[0])
    kept = labels.shape[1] - first + 1
    with torch.no_grad():
        whole, part = model(**inputs, labels=labels), model(**inputs, labels=labels, logits_to_keep=kept)
    assert part.logits.shape[1] == kept
    assert part.loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)
    with pytest.raises(ValueError, match="keep one position more"):
        model(**inputs, labels=labels, logits_to_keep=kept - 1)


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions(mask, 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert positions(mask, 1).tolist() == [[2], [2]]
    assert positions(None, 5) is None


@pytest.mark.parametrize("windows", [1, 3])
def test_placeholders_and_speech_that_differ_in_number_are_refused(windows, make_model, processor, texts, clips):
    model = make_model()
    inputs = processor(texts[0], clips["long"])
    with pytest.raises(ValueError, match=f"10 audio placeholders, but the audio gives {5 * windows}"):
        model(input_ids=inputs["input_ids"], input_features=torch.zeros(windows, 80, 3000))
    with pytest.raises(ValueError, match="10 audio placeholders, but the audio gives 0"):
        model(input_ids=inputs["input_ids"])


def test_speech_in_two_forms_at_once_is_refused(make_model, processor, texts, waves):
    model = make_model()
    inputs = processor(texts[0], waves[0])
    with pytest.raises(ValueError, match="more than once"):
        model(**inputs, encoder_frames=torch.zeros(1, 1500, 64))
    with pytest.raises(ValueError, match="exactly one"):
        model.get_speech_tokens()
    with pytest.raises(ValueError, match="wide"):
        model(input_ids=inputs["input_ids"], speech_tokens=torch.zeros(5, 7))


def test_features_frames_and_ready_speech_tokens_say_the_same(make_model, processor, texts, waves):
    model = make_model()
    inputs = processor(texts, waves)
    features = inputs.pop("input_features")
    with torch.no_grad():
        first = model(**inputs, input_features=features)
        frames = model.encode(features)
        assert frames.shape == (4, 1500, 64)
        assert model.get_speech_tokens(features).shape == (4, 5, 64)
        assert torch.equal(model(**inputs, encoder_frames=frames).logits, first.logits)
        assert torch.equal(model(**inputs, speech_tokens=first.speech_tokens).logits, first.logits)
    assert first.speech_tokens.shape == (20, 32)


def test_windows_in_groups_give_what_all_at_once_give(make_model):
    model = make_model()
    features = torch.randn(11, 80, 3000)
    with torch.no_grad():
        grouped = model.get_speech_tokens(features)
    at_once = model.get_speech_tokens(features).detach()
    torch.testing.assert_close(grouped, at_once, atol=1e-5, rtol=1e-5)


class Counted:
    """How often a module ran, and on how many rows."""

    def __init__(self, module):
        self.rows = []
        module.register_forward_hook(lambda _module, args, _output: self.rows.append(len(args[0])))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_audio_is_encoded_once_and_only_for_the_first_step(options, make_model, processor, texts, waves):
    model = make_model()
    counted = Counted(model.encoder)
    model.generate(**processor(texts, waves), max_new_tokens=6, do_sample=False, **options)
    assert counted.rows == [4]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_generation_with_a_cache_says_what_generation_without_says(kind, make_model, processor, texts, waves):
    model = make_model(kind)
    inputs = processor(texts, waves)
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    fresh = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, fresh)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_of_greedy_decoding_say_the_same(options, make_model, processor, texts, waves):
    model = make_model()
    inputs = processor(texts[0], waves[1])
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False, **options), expected)


def test_the_placeholder_is_never_written_unless_the_caller_allows_it(make_model, processor, texts, waves):
    model = make_model()
    placeholder = processor.audio_token_id
    inputs = processor(texts[0], waves[0])
    length = inputs["input_ids"].shape[1]

    def wish(_ids, scores):  # what a confused model would do: nothing but placeholders
        scores[:, placeholder] = scores.max() + 1 if scores[:, placeholder].isfinite().all() else scores[:, placeholder]
        return scores

    options = {"max_new_tokens": 4, "do_sample": False, "logits_processor": [wish]}
    allowed = model.generate(**inputs, suppress_tokens=None, **options)[0, length:]
    assert allowed.tolist() == [placeholder] * 4
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert model.generation_config.suppress_tokens == [placeholder]
    assert placeholder not in plain[0, length:].tolist()


def test_beams_and_returned_sequences_of_a_batch_are_those_of_each_clip_alone(make_model, processor, texts, waves):
    model = make_model()
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    inputs = processor(texts, waves)
    together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row, (text, wave) in enumerate(zip(texts, waves, strict=True)):
        one = processor(text, wave)
        alone = model.generate(**one, **options)[:, one["input_ids"].shape[1] :]
        assert torch.equal(together[2 * row : 2 * row + 2, : alone.shape[1]], alone)


def test_sampling_follows_the_seed_and_a_streamer_hears_every_token(make_model, processor, texts, waves, capsys):
    model = make_model()
    inputs = processor(texts[0], waves[0])
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 3.0, "num_return_sequences": 3}
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(model.generate(**inputs, **options))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    streamed = model.generate(**inputs, max_new_tokens=8, do_sample=False, streamer=streamer)
    assert processor.tokenizer.decode(streamed[0, inputs["input_ids"].shape[1] :]) in capsys.readouterr().out


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_prompt_of_text_alone_is_answered_by_the_base_model_to_the_last_bit(kind, make_model, processor):
    model = make_model(kind)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(model.config.text_config)).eval()
    state = model.language_model.state_dict()
    base.load_state_dict({key: value for key, value in state.items() if not is_lora_key(key)})
    inputs = processor(["Who are you?", "And what is this, then?"])
    counted = positions(inputs["attention_mask"], inputs["input_ids"].shape[1])
    with torch.no_grad():
        expected = base(**inputs, position_ids=counted).logits
        assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(model(**inputs, adapter=True).logits, expected)
        with model.adapter_forced(True):
            assert not torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), base.generate(**inputs, **options))


def test_lora_stays_on_while_a_cache_that_heard_speech_goes_on(make_model, processor, texts, waves):
    model = make_model()
    inputs = processor(texts[0], waves[0])
    following = processor.tokenizer("and so on", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = model(
            input_ids=torch.cat([inputs["input_ids"], following], 1), input_features=inputs["input_features"]
        ).logits
        cache = model(**inputs, use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        for used in (cache, copied):
            steps = [model(input_ids=following[:, i : i + 1], past_key_values=used).logits for i in range(9)]
            torch.testing.assert_close(torch.cat(steps, 1), whole[:, -9:], atol=1e-5, rtol=0)


def test_lora_is_left_as_trainable_as_it_was(make_model, processor):
    model = make_model()
    lora = lora_parameters(model)
    for frozen in (False, True):
        for parameter in lora:
            parameter.requires_grad_(not frozen)
        model(**processor("Hello"))
        assert all(parameter.requires_grad is not frozen for parameter in lora)


def test_a_batch_of_prompts_with_and_without_speech_is_refused(make_model, processor, texts, waves):
    model = make_model()
    inputs = processor([texts[0], "Hello"], [waves[0]])
    with pytest.raises(ValueError, match="run them apart"):
        model(**inputs)
    assert model(**inputs, adapter=True).logits.shape[0] == 2


def test_merged_lora_says_the_same_without_wrappers(make_model, processor, texts, waves):
    model = make_model()
    inputs = processor(texts, waves)
    with torch.no_grad():
        before = model(**inputs).logits
        assert lora_layers(model)
        model.merge_lora()
        assert not lora_layers(model)
        torch.testing.assert_close(model(**inputs).logits, before, atol=1e-4, rtol=1e-4)


def test_the_encoder_is_frozen_and_never_in_training_mode(make_model):
    model = make_model()
    model.train()
    assert not model.encoder.training
    assert model.hfq_former.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"hfq_former", "projector", "language_model"}
    assert all(is_lora_key(name) for name in trainable if name.startswith("language_model"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainable_parameter_gets_a_gradient_and_no_other(checkpointing, make_model, processor, texts, waves):
    model = make_model("qwen3", lora_dropout=0.0, hfq={"query_start": "time"})
    model.train()
    inputs, labels = training_batch(processor, texts, waves)
    if checkpointing:
        model(**inputs, labels=labels).loss.backward()
        plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        model.gradient_checkpointing_enable()
    model(**inputs, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
        if checkpointing and parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-5, rtol=1e-4)


def test_a_fresh_lora_changes_nothing_and_learns_from_the_second_step(make_config, processor, texts, waves):
    torch.manual_seed(0)
    model = FastSLMForConditionalGeneration(make_config())
    inputs, labels = training_batch(processor, texts, waves)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs, adapter=False).logits)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _step in range(2):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_features_are_cast_once_at_the_encoders_door(make_model, processor, texts, waves):
    model = make_model().to(torch.bfloat16)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    inputs, labels = training_batch(processor, texts, waves)
    assert inputs["input_features"].dtype == torch.float32
    with torch.no_grad():
        assert model(**inputs, labels=labels).loss.isfinite()
    assert seen == [torch.bfloat16]


def test_a_base_in_half_precision_and_trained_parts_in_single_work_together(make_model, processor, texts, waves):
    model = make_model()
    inputs, labels = training_batch(processor, texts, waves)
    expected = model(**inputs, labels=labels).loss.item()
    model.encoder.to(torch.bfloat16)
    for name, parameter in model.language_model.named_parameters():
        if not is_lora_key(name):
            parameter.data = parameter.data.to(torch.bfloat16)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.05)
    assert model.hfq_former.compressor1.query.grad.dtype == torch.float32


def test_scaled_dot_product_attention_is_the_default(make_model):
    model = make_model()
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.language_model.config._attn_implementation == "sdpa"


def test_the_ctc_head_is_there_when_the_configuration_says_so(make_model):
    model = make_model(ctc_head=True, ctc_hidden_size=16, ctc_layers=1, ctc_steps_per_token=4)
    tokens = model.get_speech_tokens(torch.randn(2, 80, 3000))
    assert model.ctc_head(tokens).shape[:2] == (2, 20)
    assert any(name.startswith("ctc_head.") and p.requires_grad for name, p in model.named_parameters())
    assert make_model().ctc_head is None


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq])
def test_the_auto_classes_know_the_model(auto, make_config):
    with torch.device("meta"):
        assert isinstance(auto.from_config(make_config()), FastSLMForConditionalGeneration)


def test_all_speech_inputs_are_arguments_of_forward():
    import inspect

    assert set(SPEECH_INPUTS) <= set(inspect.signature(FastSLMForConditionalGeneration.forward).parameters)


def test_a_model_without_lora_trains_its_own_parts_only(make_model, processor, texts, waves):
    model = make_model(lora_rank=0)
    assert not lora_layers(model)
    assert not any(p.requires_grad for p in model.language_model.parameters())
    assert model(**processor(texts, waves)).logits.isfinite().all()
