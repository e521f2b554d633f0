"""Fine-tunes a language model in a plain PyTorch loop in which one line makes it keep a fraction of the activations.

``python examples/finetune_llm.py``                              a tiny model with random weights, in seconds
``python examples/finetune_llm.py --model FOLDER --data notes.txt``    a model that transformers loads, and your text
``python examples/finetune_llm.py --budget 0.3 --estimator wta``       sampled token rows, WTA-CRS

To use it for your own loop, copy the marked lines. A whole program with evaluation, checkpoints, resume and a report is
``graphlossy llm finetune`` (in Python: ``graphlossy.llm.finetune.Finetuning``).
"""

import argparse
import pydoc_data.topics

import torch

from graphlossy import llm


def tiny_model():
    """A Llama that reads bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
        )
    )


def load(args):
    """A model, and the numbers of the text's tokens."""
    if args.data:
        with open(args.data, encoding="utf-8") as file:
            text = file.read()
    else:
        text = "\n".join(pydoc_data.topics.topics.values())  # every Python has it: half a megabyte of English
    if args.model is None:
        return tiny_model(), torch.tensor(list(text.encode()))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), torch.tensor(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder of a transformers model; without it, a tiny one is made")
    parser.add_argument("--data", help="a text file; without it, Python's own documentation")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, help="[default: 3e-3 for the tiny model, else 5e-5]")
    parser.add_argument("--bits", type=int, help="width of saved activations  [default: 4, without --budget]")
    parser.add_argument("--budget", type=float, help="share of the token rows kept for weight gradients")
    parser.add_argument("--estimator", help="how they are drawn: pps, wta, crs, topk, uniform  [default: pps]")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokens = load(args)
    model.to(device).train()
    blocks = tokens[: len(tokens) // args.length * args.length].view(-1, args.length)
    held_out, blocks = blocks[:8].to(device), blocks[8:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr or (3e-3 if args.model is None else 5e-5))

    # The one line. Weights, names and forward values stay what they were; llm.restore(model) undoes it.
    bits = args.bits if args.bits or args.budget or args.estimator else 4
    ledger = llm.compress(model, args.budget, estimator=args.estimator, bits=bits)
    sampled = args.budget is not None or args.estimator is not None

    for step in range(1, args.steps + 1):
        ids = torch.randint(len(blocks), (args.batch_size,))
        batch = blocks[ids].to(device)
        # Sampling weighs a token by its gradient's norm when its sequence was last seen: say which sequence it is.
        which = {"sample_ids": ids} if sampled else {}
        loss = model(input_ids=batch, labels=batch, **which).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 10 == 0:
            model.eval()  # evaluation runs as without the line
            with torch.no_grad():
                valid = model(input_ids=held_out, labels=held_out).loss.item()
            model.train()
            saved = f"{ledger.saved_bytes / 2**20:.1f} of {ledger.plain_bytes / 2**20:.1f} MiB saved for backward"
            print(f"step {step:4d}  loss {loss.item():.3f}  held-out {valid:.3f}  {saved}")

    print(ledger)  # what was kept, tensor by tensor


if __name__ == "__main__":
    main()
