"""Configs of tiny models, for engines with random weights."""

VOCAB = 211
EOS = 9
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": EOS,
    "dtype": "float32",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000.0},
}
CONFIGS = {
    "dense": {
        **_TEXT,
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "intermediate_size": 136,
    },
    "moe": {
        **_TEXT,
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 56,
    },
}
