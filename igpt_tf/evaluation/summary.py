"""The result of a fine-tuning as a table for the terminal."""

from igpt_tf.evaluation.linear_probe import NO_TEST_NOTE
from igpt_tf.formatting import percent, table


def of_finetune(result: dict) -> str:
    """The trials, then the accuracies of the chosen run."""
    rows = [
        [
            f"trial at {row['learning_rate']:g}",
            row["step"] or "",
            percent(row["valid_accuracy"]),
            "",
        ]
        for row in result["search"]
    ]
    accuracy = result["accuracy"]
    start = "from scratch" if result["from_scratch"] else "fine-tuned"
    measured = [percent(accuracy["valid"]), percent(accuracy.get("test"))]
    rows.append([f"{start} at {result['learning_rate']:g}", result["step"], *measured])
    text = table(["classification", "best step", "held-out", "test"], rows)
    return text if "test" in accuracy else f"{text}\n{NO_TEST_NOTE}"
