/* example URL DIRECTORY: stores, reads and lists on the Walrus publisher and aggregator at URL,
 * with the index in an SQLite file in DIRECTORY. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <walrusds.h>

#define S(text) (const uint8_t *)(text), strlen(text)

/* Prints why a call failed, and frees that. Returns whether it did. */
static int failed(const char *what, walrusds_error *err) {
  if (err->code == WALRUSDS_OK) return 0;
  fprintf(stderr, "%s: %.*s (code %" PRId32 "%s)\n", what, (int)err->message.len,
          (const char *)err->message.data, err->code, err->retryable ? ", may pass" : "");
  walrusds_error_free(err);
  return 1;
}

static int use(walrusds_handle store) {
  walrusds_error err;
  walrusds_call call = {.timeout_ms = 60000}; /* no cancel token, one minute for each call */

  walrusds_put(store, &call, S("/greeting"), S("hello"), &err);
  if (failed("put", &err)) return 1;

  walrusds_op ops[] = {
      {WALRUSDS_OP_PUT, S("/numbers/one"), S("1")},
      {WALRUSDS_OP_PUT, S("/numbers/two"), S("2")},
      {WALRUSDS_OP_DELETE, S("/numbers/three"), NULL, 0},
  };
  walrusds_batch_commit(store, &call, ops, sizeof ops / sizeof *ops, &err);
  if (failed("batch", &err)) return 1;

  walrusds_buf value;
  bool found;
  walrusds_get(store, &call, S("/greeting"), &value, &found, &err);
  if (failed("get", &err)) return 1;
  if (found) printf("/greeting = %.*s\n", (int)value.len, (const char *)value.data);
  walrusds_buf_free(&value);

  walrusds_query query;
  walrusds_query_options options = {.prefix = (const uint8_t *)"/numbers", .prefix_len = 8};
  walrusds_query_open(store, &call, &options, &query, &err);
  if (failed("query", &err)) return 1;
  for (;;) {
    walrusds_page page;
    walrusds_query_next(query, &call, &page, &err);
    if (failed("query", &err) || page.len == 0) break;
    for (size_t i = 0; i < page.len; i++) {
      const walrusds_entry *e = &page.entries[i];
      if (e->code == WALRUSDS_OK)
        printf("%.*s = %.*s\n", (int)e->key_len, (const char *)e->key, (int)e->value_len,
               (const char *)e->value);
      else /* this value cannot be read; the listing goes on */
        fprintf(stderr, "%.*s\n", (int)e->message_len, (const char *)e->message);
    }
    walrusds_page_free(&page);
  }
  walrusds_query_close(query, NULL);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s URL DIRECTORY\n", argv[0]);
    return 2;
  }
  if (walrusds_abi_version() != WALRUSDS_ABI_VERSION) {
    fprintf(stderr, "this program and the library do not fit together\n");
    return 2;
  }
  char config[1024];
  snprintf(config, sizeof config,
           "{\"publisherURL\": \"%s\", \"aggregatorURL\": \"%s\", \"indexPath\": \"index.sqlite\"}",
           argv[1], argv[1]);

  walrusds_error err;
  walrusds_handle store;
  walrusds_open(S(config), S(argv[2]), NULL, &store, &err);
  if (failed("open", &err)) return 1;
  int rc = use(store);
  walrusds_close(store, &err);
  return failed("close", &err) ? 1 : rc;
}
