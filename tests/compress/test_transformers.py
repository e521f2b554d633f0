"""Models of the transformers library, unmodified: same logits, close gradients, fewer bytes."""

import copy

import pytest
import torch

import graphlossy

transformers = pytest.importorskip("transformers")

TOKENS, CLASSES = 500, 2
SMALL = {"vocab_size": TOKENS, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert(attention: str) -> torch.nn.Module:
    config = transformers.BertConfig(
        **SMALL,
        intermediate_size=256,
        attn_implementation=attention,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def llama(attention: str) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=256, num_key_value_heads=2, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("build", [bert, llama])
def test_encoder_and_decoder(build, attention):
    torch.manual_seed(0)
    model = build(attention).train()
    ids = torch.randint(0, TOKENS, (16, 64))
    labels = torch.randint(0, CLASSES, (16,)) if build is bert else ids
    plain = copy.deepcopy(model)
    keys = list(model.state_dict())
    expected = plain(input_ids=ids, labels=labels)
    expected.loss.backward()

    ledger = graphlossy.compress(model, bits=8)
    out = model(input_ids=ids, labels=labels)
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)
    out.loss.backward()
    # The eager path keeps every softmax and the loss exactly, so it saves less.
    assert ledger.plain_bytes > (2.5 if attention == "sdpa" else 1.7) * ledger.saved_bytes
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None and other.grad.norm() > 1e-6:
            assert (parameter.grad - other.grad).norm() < 0.1 * other.grad.norm(), name
    assert list(graphlossy.restore(model).state_dict()) == keys
