"""What is done with each field of config.json and preprocessor_config.json."""

from __future__ import annotations

from eosjax.fields import Field, table

_OFF, _NONE = (False, None), (None, [], {})


def _harmless(note: str, names: str) -> list[Field]:
    return [Field(name, "harmless", note) for name in names.split()]


# Of every configuration that transformers writes, today's and that of 4.40.
_GENERAL = (
    *_harmless(
        "what wrote the file, and the names of Python classes; nothing of it is run",
        "architectures auto_map transformers_version _name_or_path _commit_hash is_composition tokenizer_class",
    ),
    *_harmless("the dtype comes from --model_dtype", "torch_dtype dtype use_bfloat16"),
    *_harmless(
        "what a call of the PyTorch model returns",
        "return_dict output_hidden_states output_attentions use_cache torchscript output_projector_states",
    ),
    *_harmless("the tokenizer has the ids", "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id"),
    *_harmless("attention is always in both directions", "attn_implementation _attn_implementation _attn_implementation_autoset"),
    *_harmless(
        "of tasks and models that no policy is",
        "id2label label2id problem_type finetuning_task task_specific_params prefix tf_legacy_loss tie_encoder_decoder is_decoder "
        "cross_attention_hidden_size",
    ),
    *_harmless("memory of a feed-forward layer", "chunk_size_feed_forward"),
    *_harmless(
        "text generation, of which a policy does none",
        "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p "
        "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
        "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
        "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
    ),
    Field("is_encoder_decoder", "refused", "another architecture", accepts=_OFF),
    Field("add_cross_attention", "refused", "another architecture", accepts=_OFF),
    Field("pruned_heads", "refused", "attention heads are missing", accepts=_NONE),
    Field("quantization_config", "refused", "quantised weights are not read", accepts=_NONE),
)

CONFIG_FIELDS = table(
    *_GENERAL,
    Field("text_config", "honoured", "sizes of the language model"),
    Field("use_fused_vision_backbone", "honoured", "must be true: two encoders"),
    Field("timm_model_ids", "honoured", "the two encoders: DINOv2 and SigLIP"),
    Field("image_sizes", "honoured", "pixels a side of the images of both encoders"),
    Field("n_action_bins", "honoured", "must be 256 where actions are tokens"),
    Field("pad_to_multiple_of", "honoured", "rows of the embedding behind the text vocabulary, whose last ids stand for actions"),
    Field("model_type", "refused", "another architecture", accepts=("openvla", "prismatic")),
    Field(
        "arch_specifier", "refused", "another projector",
        accepts=("no-align+fused-gelu-mlp", "fused-gelu-mlp", "no-align+gelu-mlp", "gelu-mlp"),
    ),
    Field("vision_backbone_id", "refused", "other encoders", accepts=("dinosiglip-vit-so-224px",)),
    Field("llm_backbone_id", "refused", "another language model, or other prompts", accepts=("llama2-7b-pure", "llama2-13b-pure")),
    Field("image_resize_strategy", "refused", "images are stretched to the size of the encoders", accepts=("resize-naive",)),
    Field("timm_override_act_layers", "refused", "another activation in the encoders", accepts=(None, [None, None])),
    Field("tie_word_embeddings", "harmless", "text_config.tie_word_embeddings is what counts"),
    Field("hf_llm_id", "harmless", "where the language model came from"),
    Field("llm_max_length", "harmless", "the length of the text comes from the prompts"),
    Field("norm_stats", "harmless", "the statistics of the data of the run are used"),
)  # fmt: skip

TEXT_FIELDS = table(
    *_GENERAL,
    Field("vocab_size", "honoured", "rows of the embedding"),
    Field("hidden_size", "honoured", "width"),
    Field("num_hidden_layers", "honoured", "depth"),
    Field("num_attention_heads", "honoured", "heads of the queries"),
    Field("num_key_value_heads", "honoured", "heads of keys and values"),
    Field("intermediate_size", "honoured", "width of the MLP"),
    Field("rms_norm_eps", "honoured", "epsilon of the norms"),
    Field("head_dim", "honoured", "must be hidden_size / num_attention_heads"),
    Field("rope_theta", "honoured", "base of the rotary frequencies"),
    Field("rope_parameters", "honoured", "base of the rotary frequencies; rope_type must be default"),
    Field("rope_scaling", "honoured", "as rope_parameters"),
    Field("tie_word_embeddings", "honoured", "the output projection is the embedding"),
    Field("model_type", "refused", "another language model", accepts=("llama",)),
    Field("hidden_act", "refused", "the MLP computes SiLU", accepts=("silu", "swish")),
    Field("attention_bias", "refused", "linear layers without bias", accepts=_OFF),
    Field("mlp_bias", "refused", "linear layers without bias", accepts=_OFF),
    Field("sliding_window", "refused", "every token sees all others", accepts=(None,)),
    Field("use_sliding_window", "refused", "every token sees all others", accepts=_OFF),
    Field("layer_types", "refused", "every token sees all others in every layer", accepts=(None,)),
    Field("partial_rotary_factor", "refused", "all channels of a head are rotated", accepts=(1, None)),
    Field("attention_dropout", "refused", "no dropout in the base model", accepts=(0, None)),
    Field("max_position_embeddings", "harmless", "rotary positions have no limit"),
    Field("initializer_range", "harmless", "of random weights"),
    Field("pretraining_tp", "harmless", "the order of a sum"),
)

ROPE_FIELDS = table(
    Field("rope_theta", "honoured", "base of the rotary frequencies"),
    Field("rope_type", "refused", "other rotary frequencies", accepts=("default", None)),
    Field("type", "refused", "other rotary frequencies", accepts=("default", None)),
    Field("factor", "refused", "other rotary frequencies", accepts=(1, None)),
    Field("partial_rotary_factor", "refused", "all channels of a head are rotated", accepts=(1, None)),
)

PREPROCESSOR_FIELDS = table(
    Field("tvf_normalize_params", "honoured", "mean and standard deviation of the pixels of each encoder"),
    Field("means", "honoured", "means, where there is no tvf_normalize_params"),
    Field("stds", "honoured", "standard deviations, where there is no tvf_normalize_params"),
    Field("input_sizes", "honoured", "must be the image_sizes of config.json"),
    Field("tvf_resize_params", "honoured", "must be the image_sizes of config.json"),
    Field("tvf_crop_params", "honoured", "must be the image_sizes of config.json, so that nothing is cropped"),
    Field("use_fused_vision_backbone", "refused", "two encoders", accepts=(True,)),
    Field("image_resize_strategy", "refused", "images are stretched to the size of the encoders", accepts=("resize-naive",)),
    Field("tvf_do_letterbox", "refused", "images get no border", accepts=_OFF),
    Field("tvf_letterbox_fill", "refused", "images get no border", accepts=(None,)),
    *_harmless("images have the size of the encoders before this processor would resize them", "interpolations"),
    *_harmless("names of Python classes; nothing of them is run", "image_processor_type processor_class auto_map feature_extractor_type"),
)
