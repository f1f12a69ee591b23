"""Whether records say what happened: validate, recount, rescore, run again."""
