"""Find the ticket of a transformer that the Hugging Face Trainer trains: the four lines are marked.

python examples/trainer.py [FOLDER [MODEL]]

FOLDER holds train.parquet and validation.parquet with the columns `sentence` and `label`, such as SST-2. MODEL is what
is fine-tuned, such as google-bert/bert-base-uncased; without it, a tiny BERT is trained from scratch. The same command
goes on after a kill. `torchrun --nproc-per-node 2 examples/trainer.py` trains in two processes.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import earlyworm as ew
from earlyworm.integrations.transformers import TicketCallback, load_pretrained, save_pretrained  # 1


def make_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of words."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(sentences, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["[PAD]", "[UNK]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    )


def accuracy(results) -> dict[str, float]:
    return {"accuracy": (results.predictions.argmax(1) == results.label_ids).mean().item()}


def make_model(words: int) -> BertForSequenceClassification:
    """A tiny BERT with random weights."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    return BertForSequenceClassification(BertConfig(vocab_size=words, **sizes))


def main(folder: Path, output: Path, pretrained: str | None = None, limit: int | None = None) -> None:
    set_seed(0)
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
    data = load_dataset("parquet", data_files=files)
    if pretrained is None:
        tokenizer = make_tokenizer(data["train"]["sentence"])
        model = make_model(len(tokenizer))
    else:
        tokenizer = AutoTokenizer.from_pretrained(pretrained)
        model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    data = data.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=24), remove_columns="sentence")
    train = data["train"] if limit is None else data["train"].select(range(limit))

    trainer = Trainer(
        model,
        TrainingArguments(
            str(output),
            num_train_epochs=4 if pretrained else 12,
            per_device_train_batch_size=32,
            learning_rate=5e-5 if pretrained else 1e-3,
            save_strategy="epoch",
            save_total_limit=2,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    dense = trainer.model.num_parameters()

    callback = TicketCallback(  # 2
        trainer,
        every=max(1, len(trainer.get_train_dataloader()) // 4),  # steps: four checks an epoch
        units=("heads", "neurons"),
        pruning_ratio=0.5,
        score="taylor",
        truncation=ew.Fade(),
        emergence=ew.Emergence(window=5, epsilon=0.1 if pretrained else 0.25),  # a tiny model has few heads
    )
    trainer.add_callback(callback)  # 3
    # What is written last into a checkpoint: without it, the power went off meanwhile.
    whole = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    trainer.train(resume_from_checkpoint=str(whole[-1].parent) if whole else None)

    ticket, result = callback.draw(), trainer.evaluate()["eval_accuracy"]
    if trainer.is_world_process_zero():
        save_pretrained(trainer.model, ticket, output / "small")  # 4
        small = load_pretrained(output / "small")  # anywhere else
        print(f"the ticket emerged after {ticket.step} steps: {ticket.mask.units_kept} of {ticket.mask.units} units")
        print(f"{result:.3f} held-out accuracy, {small.num_parameters():,} of {dense:,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sst2"), Path("trainer-output"), *sys.argv[2:3])
