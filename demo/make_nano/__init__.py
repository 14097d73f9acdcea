"""`python -m demo.make_nano`: the retriever in `demo/nano`, from the text of this environment and one teacher."""
