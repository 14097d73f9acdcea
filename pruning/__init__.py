"""From a Llama folder to a smaller Llama folder: learned masks, slicing, continued pretraining (Sheared-LLaMA)."""
