"""rcjax: code LLMs that write the right program in one go, trained on attempt-feedback-reflection traces."""

__version__ = "0.1.0"
