"""
Every parameter: its default, its limits, and the sentence that refuses the rest.
"""

import pytest

from dalston.orchestrator.protocol.messages import SessionConfig
from dalston.orchestrator.protocol.parameters import (
    ParameterError,
    choose_endpointing,
    choose_variant,
    normal_language,
    session_config,
)


# 000-17, 000-18, 000-19, 000-20, 000-31, 000-33, 000-34, 001-33, L-01, L-02, C-23
def test_without_parameters_everything_is_as_documented() -> None:
    config, warnings = session_config({})
    assert warnings == []
    assert config == SessionConfig(
        sample_rate=16_000,
        encoding="pcm_s16le",
        channels=1,
        language="auto",
        model="fast",
        interim_results=True,
        word_timestamps=False,
        enable_vad=True,
        endpointing="auto",
        vad_threshold=0.5,
        min_speech_duration_ms=250,
        min_silence_duration_ms=500,
        prefix_padding_ms=300,
        max_utterance_duration=30.0,
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sample_rate", "8000", 8_000),
        ("sample_rate", "48000", 48_000),
        ("encoding", "mulaw", "mulaw"),
        ("channels", "2", 2),
        ("language", "de", "de"),
        ("language", "en-US", "en"),
        ("language", "pt_BR", "pt"),
        ("language", "AUTO", "auto"),
        ("languages", "en,de", ("en", "de")),
        ("languages", "de-AT, EN ,de", ("de", "en")),
        ("language_detection", "utterance", "utterance"),
        ("task", "translate", "translate"),
        ("prompt", "Zarathustra, said he.", "Zarathustra, said he."),
        ("prompt", "x" * 2_000, "x" * 2_000),
        ("keywords", "Zau al Makan, Quilter,,", ("Zau al Makan", "Quilter")),
        ("keywords", "", ()),
        ("model", "accurate", "accurate"),
        ("interim_results", "false", False),
        ("interim_results", "0", False),
        ("word_timestamps", "true", True),
        ("word_timestamps", "1", True),
        ("enable_vad", "false", False),
        ("ack", "true", True),
        ("endpointing", "manual", "manual"),
        ("endpointing", "smart", "smart"),
        ("eager", "true", True),
        ("turn_threshold", "0.6", 0.6),
        ("turn_silence_ms", "200", 200),
        ("max_silence_duration_ms", "5000", 5_000),
        ("vad_threshold", "0.35", 0.35),
        ("vad_threshold", "1", 1.0),
        ("min_speech_duration_ms", "50", 50),
        ("min_silence_duration_ms", "2000", 2_000),
        ("prefix_padding_ms", "0", 0),
        ("max_utterance_duration", "5", 5.0),
        ("max_utterance_duration", "12.5", 12.5),
        ("max_utterance_duration", "30", 30.0),
    ],
)
def test_a_parameter_is_taken(name: str, text: str, value: object) -> None:
    config, _ = session_config({name: text})
    assert getattr(config, name) == value


# 000-18, L-02
@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("sample_rate", "7999", "8000 to 48000"),
        ("sample_rate", "48001", "8000 to 48000"),
        ("sample_rate", "16k", "8000 to 48000"),
        ("encoding", "mp3", "pcm_s16le"),
        ("channels", "3", "1 or 2"),
        ("channels", "0", "1 or 2"),
        ("language_detection", "word", "session, utterance"),
        ("task", "summarise", "transcribe, translate"),
        ("prompt", "x" * 2_001, "at most 2000 characters"),
        ("keywords", ",".join("x" * 51), "at most 50 names"),
        ("keywords", "x" * 51, "at most 50 characters"),
        ("keywords", "two\nlines", "in one line"),
        ("model", "large", "fast, accurate"),
        ("interim_results", "maybe", "true or false"),
        ("word_timestamps", "", "true or false"),
        ("enable_vad", "2", "true or false"),
        ("endpointing", "vad", "auto, smart, manual"),
        ("vad_threshold", "-0.1", "0 to 1"),
        ("vad_threshold", "nan", "0 to 1"),
        ("min_speech_duration_ms", "49", "50 to 2000"),
        ("min_silence_duration_ms", "2001", "50 to 2000"),
        ("min_silence_duration_ms", "100.5", "50 to 2000"),
        ("prefix_padding_ms", "1001", "0 to 1000"),
        ("turn_threshold", "1.1", "0 to 1"),
        ("turn_silence_ms", "199", "200 to 5000"),
        ("max_silence_duration_ms", "5001", "200 to 5000"),
        ("max_utterance_duration", "30.1", "5 to 30"),
        ("max_utterance_duration", "4.9", "5 to 30"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ParameterError) as refused:
        session_config({name: text})
    assert refused.value.code == "invalid_parameter"
    assert name in str(refused.value)
    assert allowed in str(refused.value)


# L-04
@pytest.mark.parametrize("code", ["xx", "english", "", "e", "🙂", "x" * 9_000])
def test_a_language_whisper_does_not_know_is_refused(code: str) -> None:
    with pytest.raises(ParameterError) as refused:
        session_config({"language": code})
    assert len(str(refused.value)) < 400
    assert refused.value.code == "language_unsupported"


@pytest.mark.parametrize("codes", ["en,xx", "", "auto", "en;de"])
def test_languages_whisper_does_not_know_are_refused(codes: str) -> None:
    with pytest.raises(ParameterError) as refused:
        session_config({"languages": codes})
    assert refused.value.code == "language_unsupported"
    assert "languages=" in str(refused.value)


@pytest.mark.parametrize(
    ("more", "word"),
    [({"languages": "en,de"}, "languages"), ({"language_detection": "utterance"}, "detected")],
)
def test_a_language_that_is_given_is_not_detected_too(more: dict[str, str], word: str) -> None:
    with pytest.raises(ParameterError) as refused:
        session_config({"language": "en"} | more)
    assert refused.value.code == "invalid_parameter"
    assert word in str(refused.value)


@pytest.mark.parametrize("name", ["prompt", "keywords"])
def test_what_may_be_private_is_not_quoted(name: str) -> None:
    with pytest.raises(ParameterError) as refused:
        session_config({name: "Mr. Hale of Helstone. " * 200})
    assert "Hale" not in str(refused.value)


def test_an_unknown_parameter_is_warned_of_and_changes_nothing() -> None:
    config, warnings = session_config({"colour": "blue"})
    assert config == SessionConfig()
    assert [(w.code, "colour" in w.message) for w in warnings] == [("unknown_parameter", True)]


def test_the_model_id_is_not_for_clients_to_say() -> None:
    config, warnings = session_config({"model_id": "mine"})
    assert config.model_id == ""
    assert len(warnings) == 1


def test_a_client_cannot_say_that_its_audio_is_recorded() -> None:
    config, warnings = session_config({"recorded": "true"})
    assert not config.recorded
    assert len(warnings) == 1


def test_regions_are_dropped() -> None:
    assert [normal_language(code) for code in ("en-US", "ZH_tw", " de ", "auto")] == [
        "en",
        "zh",
        "de",
        "auto",
    ]


# Which variant serves.

MANY, ENGLISH = ("en", "es", "de"), ("en",)


# 001-05, L-05, C-15
@pytest.mark.parametrize(
    ("model", "language", "loaded", "served", "warned"),
    [
        ("fast", "es", {"fast": MANY, "accurate": MANY}, "fast", False),
        ("accurate", "auto", {"fast": MANY, "accurate": MANY}, "accurate", False),
        ("fast", "en", {"fast": ENGLISH, "accurate": MANY}, "fast", False),
        ("fast", "es", {"fast": ENGLISH, "accurate": MANY}, "accurate", True),
        ("fast", "auto", {"fast": ENGLISH, "accurate": MANY}, "accurate", True),
        ("accurate", "en", {"fast": MANY}, "fast", True),
        ("fast", "auto", {"fast": ENGLISH}, "fast", False),
    ],
)
def test_the_variant_asked_for_serves_or_another_does_with_a_warning(
    model: str, language: str, loaded: dict[str, tuple[str, ...]], served: str, warned: bool
) -> None:
    config, _ = session_config({"model": model, "language": language})
    variant, notices = choose_variant(config, loaded)
    assert variant == served
    assert [notice.code for notice in notices] == ["model_fallback"] * warned


@pytest.mark.parametrize(
    ("query", "loaded", "translating", "served"),
    [
        ({"task": "translate"}, {"fast": MANY, "accurate": MANY}, ["fast"], "fast"),
        ({"task": "translate"}, {"fast": MANY, "accurate": MANY}, ["accurate"], "accurate"),
        ({"languages": "en,de"}, {"fast": MANY}, [], "fast"),
        ({"languages": "en,de"}, {"fast": ENGLISH, "accurate": MANY}, [], "accurate"),
        ({"languages": "en"}, {"fast": ENGLISH}, [], "fast"),
        ({"language_detection": "utterance"}, {"fast": ENGLISH}, [], "fast"),
    ],
)
def test_a_variant_serves_that_can_do_what_is_asked(
    query: dict[str, str],
    loaded: dict[str, tuple[str, ...]],
    translating: list[str],
    served: str,
) -> None:
    config, _ = session_config(query)
    variant, notices = choose_variant(config, loaded, translating)
    assert variant == served
    assert [notice.code for notice in notices] == ["model_fallback"] * (served != "fast")


def test_what_no_loaded_model_can_do_is_refused() -> None:
    for query, code, word in (
        ({"task": "translate"}, "invalid_parameter", "translate"),
        ({"languages": "en,ja"}, "language_unsupported", "languages="),
    ):
        config, _ = session_config(query)
        with pytest.raises(ParameterError) as refused:
            choose_variant(config, {"fast": MANY})
        assert refused.value.code == code
        assert word in str(refused.value)


def test_a_language_no_loaded_model_knows_is_refused() -> None:
    config, _ = session_config({"language": "ja"})
    with pytest.raises(ParameterError) as refused:
        choose_variant(config, {"fast": MANY})
    assert refused.value.code == "language_unsupported"


def test_without_a_model_that_judges_turns_silence_ends_them_with_a_warning() -> None:
    config, warnings = choose_endpointing(SessionConfig(endpointing="smart"), False)
    assert config.endpointing == "auto"
    assert [warning.code for warning in warnings] == ["endpointing_fallback"]


@pytest.mark.parametrize("endpointing", ["auto", "smart", "manual"])
def test_endpointing_is_as_asked_for_where_it_can_be(endpointing: str) -> None:
    config, _ = session_config({"endpointing": endpointing})
    assert choose_endpointing(config, True) == (config, [])


# C-20
@pytest.mark.parametrize(("threshold", "hinted"), [("0.01", True), ("0.05", True), ("0.06", False)])
def test_a_threshold_that_is_one_of_loudness_elsewhere_is_hinted_at(
    threshold: str, hinted: bool
) -> None:
    config, warnings = session_config({"vad_threshold": threshold})
    assert config.vad_threshold == float(threshold)
    assert [notice.code for notice in warnings] == ["low_vad_threshold"] * hinted
