"""Which golden checkpoints are encoders."""

ENCODERS = (
    "bert",
    "distilbert",
    "modernbert",
    "roberta",
    "t5_encoder",
    "xlm_roberta",
)
FAMILIES = (
    "bert",
    "distilbert",
    "ernie",
    "modernbert",
    "roberta",
    "t5",
    "xlm-roberta",
)
