"""The thirty papers, one row each: what users import, what reproduces the claim."""

from typing import Literal, NamedTuple

__all__ = ["PAPERS", "Paper"]


class Paper(NamedTuple):
    """One paper and where it lives in jtok.

    Attributes:
      slug: names its experiment, goldens, results and notebook cells.
      title: as published.
      arxiv: arXiv identifier, or None.
      symbols: dotted names of what users import; empty while planned.
      experiment: module that measures the claim; None while planned.
      status: `"planned"`, `"partial"` or `"works"`.
      claim: what the paper says, in one line, with its own figure.
    """

    slug: str
    title: str
    arxiv: str | None
    symbols: tuple[str, ...] = ()
    experiment: str | None = None
    status: Literal["planned", "partial", "works"] = "planned"
    claim: str = ""


PAPERS: tuple[Paper, ...] = (
    Paper(
        slug="aim",
        title=(
            "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning"
        ),
        arxiv="2412.03248",
        symbols=(
            "jtok.compress.AimScore",
            "jtok.compress.LayerSchedule",
            "jtok.compress.aim",
            "jtok.compress.aim_importance",
            "jtok.compress.kept_schedule",
            "jtok.compress.merge_frames",
            "jtok.compress.merge_to_grid",
            "jtok.compress.prefill",
            "jtok.compress.ramp_schedule",
        ),
        experiment="experiments.aim",
        status="works",
        claim="Video question answering keeps its score with 15% of the prefill FLOPs.",
    ),
    Paper(
        slug="byte_probabilities",
        title=(
            "Exact Byte-Level Probabilities from Tokenized Language Models for FIM-"
            "Tasks and Model Ensembles"
        ),
        arxiv="2410.09303",
        symbols=(
            "jtok.text.valid_next",
            "jtok.text.byte_order",
            "jtok.decode.byte_level",
            "jtok.decode.byte_ensemble",
            "jtok.decode.fill_in_middle",
            "jtok.decode.token_healing",
            "jtok.decode.token_prompt",
        ),
        experiment="experiments.byte_probabilities",
        status="works",
        claim=(
            "Exact next-byte probabilities without training: about 18% better "
            "completion after a cut inside a token."
        ),
    ),
    Paper(
        slug="caft",
        title="Improving large language models with concept-aware fine-tuning",
        arxiv="2506.07833",
        symbols=(
            "jtok.predict.init_heads",
            "jtok.predict.pretrain_heads",
            "jtok.predict.concept_tune",
            "jtok.decode.auxiliary_heads",
        ),
        experiment="experiments.caft",
        status="works",
        claim=(
            "Auxiliary heads during fine-tuning, dropped afterwards, improve code, "
            "maths and molecules."
        ),
    ),
    Paper(
        slug="chimera",
        title=(
            "Chimera: A Lossless Decoding Method for Accelerating Large Language "
            "Models Inference by Fusing all Tokens"
        ),
        arxiv="2402.15758",
        symbols=(
            "jtok.predict.init_fusing",
            "jtok.predict.draft_loss",
            "jtok.decode.chimera",
            "jtok.decode.medusa",
        ),
        experiment="experiments.chimera",
        status="works",
        claim="A small draft stack on the target's last states decodes 2.7x faster.",
    ),
    Paper(
        slug="diffusion_joint_sampling",
        title="Enabling Approximate Joint Sampling in Diffusion LMs",
        arxiv="2509.22738",
        symbols=(
            "jtok.predict.sample_masked",
            "jtok.predict.joint_layer",
            "jtok.predict.joint_loss",
            "jtok.predict.diffusion_loss",
        ),
        experiment="experiments.diffusion_joint_sampling",
        status="works",
        claim=(
            "One extra layer draws several tokens a forward jointly: MAUVE 0.87 "
            "against 0.31 at four."
        ),
    ),
    Paper(
        slug="dualspeechlm",
        title=(
            "DualSpeechLM: Towards Unified Speech Understanding and Generation via "
            "Dual Speech Token Modeling with LLMs"
        ),
        arxiv="2508.08961",
        claim=(
            "Understanding tokens in and acoustic tokens out help speech recognition "
            "and synthesis at once."
        ),
    ),
    Paper(
        slug="dupmae",
        title=(
            "RetroMAE v2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-"
            "Oriented Language Models"
        ),
        arxiv="2211.08769",
        claim=(
            "Training all tokens as an auto-encoder, not only [CLS], lifts zero-shot "
            "BEIR from .452 to .477."
        ),
    ),
    Paper(
        slug="dynamic_tokenization",
        title="Retrofitting (Large) Language Models with Dynamic Tokenization",
        arxiv="2411.18553",
        symbols=(
            "jtok.text.merge_batch",
            "jtok.embed.dynamic_inputs",
            "jtok.embed.hypernetwork",
            "jtok.embed.candidate_target",
        ),
        experiment="experiments.dynamic_tokenization",
        status="works",
        claim=(
            "Merging frequent subwords per batch shortens text by over 20% for under "
            "2% of accuracy."
        ),
    ),
    Paper(
        slug="ernie_gram",
        title=(
            "ERNIE-Gram: Pre-Training with Explicitly N-Gram Masked Language Modeling "
            "for Natural Language Understanding"
        ),
        arxiv="2010.12148",
        symbols=(
            "jtok.text.build_lexicon",
            "jtok.predict.gram_batches",
            "jtok.predict.init_grams",
            "jtok.predict.gram_loss",
            "jtok.predict.plain_encoder",
            "jtok.models.from_paddle",
        ),
        experiment="experiments.ernie_gram",
        status="works",
        claim=(
            "Masking n-grams as single units beats token masking on GLUE (88.1 against"
            " 86.4)."
        ),
    ),
    Paper(
        slug="ftp",
        title=(
            "Future Token Prediction: Causal Language Modelling with Per-Token "
            "Semantic State Vector for Multi-Token Prediction"
        ),
        arxiv="2410.18160",
        symbols=(
            "jtok.predict.FutureModel",
            "jtok.predict.future_from",
            "jtok.predict.future_loss",
            "jtok.decode.future_drafter",
            "jtok.decode.future_blocks",
        ),
        experiment="experiments.ftp",
        status="works",
        claim=(
            "State vectors that must spell several next tokens vary smoothly and "
            "classify better."
        ),
    ),
    Paper(
        slug="function_tokens",
        title=(
            "Memory Retrieval and Consolidation in Large Language Models through "
            "Function Tokens"
        ),
        arxiv="2510.08203",
        claim="Ten function tokens activate most of a model's features.",
    ),
    Paper(
        slug="information_flow",
        title=(
            "Follow the Flow: On Information Flow Across Textual Tokens in Text-to-"
            "Image Models"
        ),
        arxiv="2504.01137",
        claim=(
            "One or two tokens carry an item of a prompt; dropping the redundant ones "
            "improves pictures."
        ),
    ),
    Paper(
        slug="lama",
        title="Low Rank Factorization for Compact Multi-Head Self-Attention",
        arxiv="1912.00835",
        symbols=(
            "jtok.nn.LamaPooler",
            "jtok.nn.StructuredPooler",
            "jtok.nn.bi_gru",
            "jtok.classify.ClassifierConfig",
            "jtok.classify.classifier_loss",
            "jtok.classify.read_hidden",
            "jtok.classify.word_weights",
        ),
        experiment="experiments.lama",
        status="works",
        claim=(
            "Low-rank attention pooling matches larger poolings with fewer parameters."
        ),
    ),
    Paper(
        slug="learn_your_tokens",
        title="Learn Your Tokens: Word-Pooled Tokenization for Language Modeling",
        arxiv="2310.11628",
        symbols=(
            "jtok.embed.WordPooledConfig",
            "jtok.embed.word_loss",
            "jtok.embed.packed_loss",
            "jtok.embed.generate_words",
            "jtok.text.split_words",
            "jtok.text.units",
        ),
        experiment="experiments.learn_your_tokens",
        status="works",
        claim=(
            "Pooling the units of a word end to end predicts words far better than "
            "subwords or bytes."
        ),
    ),
    Paper(
        slug="lexinvariant",
        title="Lexinvariant Language Models",
        arxiv="2305.16349",
        symbols=(
            "jtok.embed.lexinvariant_from",
            "jtok.embed.lexinvariant_loss",
            "jtok.embed.lexinvariant_target",
            "jtok.embed.permutation_mixture",
        ),
        experiment="experiments.lexinvariant",
        status="works",
        claim=(
            "A model without fixed embeddings deciphers in context and reasons 4x "
            "better on synthetic tasks."
        ),
    ),
    Paper(
        slug="mingtok",
        title=(
            "Ming-UniVision: Joint Image Understanding and Generation with a Unified "
            "Continuous Tokenizer"
        ),
        arxiv="2510.06590",
        claim=(
            "One continuous tokenizer serves understanding and generation: rFID 0.54 "
            "from 256 tokens."
        ),
    ),
    Paper(
        slug="mtp",
        title=(
            "Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential"
        ),
        arxiv="2507.11851",
        symbols=(
            "jtok.decode.mtp",
            "jtok.predict.mask_init",
            "jtok.predict.mask_loss",
            "jtok.predict.with_masks",
        ),
        experiment="experiments.mtp",
        status="works",
        claim=(
            "Mask tokens and a gated LoRA make a model draft for itself: 5.2 tokens a "
            "step on GSM8K."
        ),
    ),
    Paper(
        slug="needle_threading",
        title=(
            "Needle Threading: Can LLMs Follow Threads through Near-Million-Scale "
            "Haystacks?"
        ),
        arxiv="2411.05000",
        claim=(
            "Retrieval through long contexts falls with length, and its effective "
            "limit is well below the nominal one."
        ),
    ),
    Paper(
        slug="omp_transplant",
        title="Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
        arxiv="2506.06607",
        symbols=(
            "jtok.embed.omp",
            "jtok.embed.transplant",
            "jtok.embed.orthogonal_pursuit",
            "jtok.embed.well_trained_tokens",
        ),
        experiment="experiments.omp_transplant",
        status="works",
        claim=(
            "A new vocabulary by sparse combinations of shared tokens keeps 99% of "
            "MMLU, with no training."
        ),
    ),
    Paper(
        slug="pitome",
        title="Accelerating Transformers with Spectrum-Preserving Token Merging",
        arxiv="2405.16148",
        symbols=(
            "jtok.compress.pitome",
            "jtok.compress.tome",
            "jtok.compress.schedule",
            "jtok.compress.pitome_preset",
            "jtok.compress.flops",
            "jtok.compress.spectral_distance",
        ),
        experiment="experiments.pitome",
        status="works",
        claim=(
            "Merging that protects isolated tokens saves 40-60% of FLOPs for 0.5% of "
            "accuracy."
        ),
    ),
    Paper(
        slug="s2d",
        title=(
            "S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested "
            "Large Language Models"
        ),
        arxiv="2407.01955",
        symbols=(
            "jtok.predict.sorted_loss",
            "jtok.predict.early_exit",
            "jtok.predict.calibrate_thresholds",
            "jtok.decode.sorted_chain",
            "jtok.decode.sorted_tree",
        ),
        experiment="experiments.s2d",
        status="works",
        claim=(
            "One sorted draft model serves targets of several sizes: 1.55x on average."
        ),
    ),
    Paper(
        slug="seed",
        title="Planting a SEED of Vision in Large Language Model",
        arxiv="2307.08041",
        claim=(
            "An image as 32 causal discrete codes that a language model reads and "
            "writes."
        ),
    ),
    Paper(
        slug="sentfin",
        title="SEntFiN 1.0: Entity-Aware Sentiment Analysis for Financial News",
        arxiv="2305.12257",
        claim=(
            "Marking the entity in a headline lets a classifier tell whom the news is "
            "good for."
        ),
    ),
    Paper(
        slug="sstoken",
        title=(
            "ssToken: Self-modulated and Semantic-aware Token Selection for LLM Fine-"
            "tuning"
        ),
        arxiv="2510.18250",
        claim=(
            "Fine-tuning on the tokens that the model's own history selects beats full"
            " data by 1.3-4.3%."
        ),
    ),
    Paper(
        slug="text2token",
        title=(
            "Text2Token: Unsupervised Text Representation Learning with Token Target "
            "Prediction"
        ),
        arxiv="2510.10224",
        claim=(
            "Predicting a text's key tokens turns a language model into an embedder "
            "without pairs."
        ),
    ),
    Paper(
        slug="token_compression_survey",
        title=(
            "A Survey of Token Compression for Efficient Multimodal Large Language "
            "Models"
        ),
        arxiv="2507.20198",
        symbols=(
            "jtok.compress.compress",
            "jtok.compress.methods",
            "jtok.compress.adjacent",
            "jtok.compress.attention_scores",
            "jtok.compress.divprune",
            "jtok.compress.dycoke",
            "jtok.compress.fastv",
            "jtok.compress.prumerge",
            "jtok.compress.prumerge_plus",
            "jtok.compress.random_tokens",
            "jtok.compress.reselect",
            "jtok.compress.sparsevlm",
            "jtok.compress.sparsevlm_attention",
            "jtok.compress.sparsevlm_counts",
            "jtok.compress.uniform_tokens",
            "jtok.compress.visionzip",
            "jtok.compress.withdraw_layer",
        ),
        experiment="experiments.token_compression_survey",
        status="works",
        claim=(
            "Four families of compression under one interface, compared at equal "
            "budgets."
        ),
    ),
    Paper(
        slug="token_recycling",
        title=(
            "Turning Trash into Treasure: Accelerating Inference of Large Language "
            "Models with Token Recycling"
        ),
        arxiv="2408.08696",
        symbols=("jtok.decode.token_recycling",),
        experiment="experiments.token_recycling",
        status="works",
        claim=(
            "Drafting from a table of recycled candidates, without training: 2.70 "
            "tokens a call, 2.03x on Spec-Bench."
        ),
    ),
    Paper(
        slug="tokenadapt",
        title=(
            "Achieving Tokenizer Flexibility in Language Models through Heuristic "
            "Adaptation and Supertoken Learning"
        ),
        arxiv="2505.09738",
        symbols=(
            "jtok.embed.tokenadapt",
            "jtok.embed.hashed_ngrams",
            "jtok.text.ChunkLaw",
            "jtok.text.train_supertokens",
            "jtok.text.compression",
        ),
        experiment="experiments.tokenadapt",
        status="works",
        claim=(
            "Local and global heuristics give new tokens their vectors at lower "
            "perplexity than ReTok and TransTokenizer."
        ),
    ),
    Paper(
        slug="tokenunify",
        title=(
            "TokenUnify: Scaling Up Autoregressive Pretraining for Neuron Segmentation"
        ),
        arxiv="2405.16847",
        claim=(
            "Mixed token prediction on volumes improves neuron segmentation by 44% "
            "over no pre-training."
        ),
    ),
    Paper(
        slug="xtr",
        title="Rethinking the Role of Token Retrieval in Multi-Vector Retrieval",
        arxiv="2304.01982",
        claim=(
            "Scoring with the retrieved tokens only reaches nDCG@10 49.1 on BEIR, "
            "above full late interaction."
        ),
    ),
)
