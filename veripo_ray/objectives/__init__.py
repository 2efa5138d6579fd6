"""What is optimised: group advantages, the GRPO family of losses, and DPO."""
