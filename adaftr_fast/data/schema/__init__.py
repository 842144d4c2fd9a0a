"""What a data set is: types, parsing and checks of schema files, and the schemas that ship."""
