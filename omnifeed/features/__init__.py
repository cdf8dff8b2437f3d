"""Features as of a time: aggregates, histories and the specification that names them."""
