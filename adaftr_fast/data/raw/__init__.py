"""Reading raw logs: text, parquet, Ali-CCP, staging to parquet, bad rows, schema inference."""
