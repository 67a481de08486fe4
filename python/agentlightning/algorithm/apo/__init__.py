"""`APO`: improves a prompt by asking a model what is wrong with it."""

from agentlightning.algorithm.apo.apo import APO, RolloutResultForAPO, VersionedPromptTemplate
from agentlightning.algorithm.apo.result import APOResult, Branch, Candidate, Cost, Refusal, Round

__all__ = [
    "APO",
    "APOResult",
    "Branch",
    "Candidate",
    "Cost",
    "Refusal",
    "RolloutResultForAPO",
    "Round",
    "VersionedPromptTemplate",
]
