/* Many threads at once. */
#include "harness.h"

enum { THREADS = 16 };

static int rounds(void) { return quick ? 3 : 25; }

struct worker {
  int number;
  walrusds_handle handle;
  atomic_int *ended; /* how many calls were told that the datastore is closed */
};

static void run(void *(*body)(void *), struct worker *workers) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) {
    workers[i].number = i;
    threads[i] = start(body, &workers[i]);
  }
  for (int i = 0; i < THREADS; i++) join(threads[i]);
}

static void *one_datastore(void *arg) {
  struct worker *w = arg;
  for (int i = 0; i < rounds(); i++) {
    size_t len = (size_t)(w->number * 997 + i * 13001) % 60000;
    uint8_t *value = pattern(len, (unsigned)(w->number * 1000 + i));
    const char *key = text("/%d/%d", w->number, i);
    OK(walrusds_put(w->handle, NULL, S(key), value, len, &err));
    expect_bytes(w->handle, key, value, len);
    free(value);
    /* A key of another thread: its value is absent or whole, never a part. */
    walrusds_buf out;
    bool found;
    key = text("/%d/%d", (w->number + 1) % THREADS, i);
    OK(walrusds_get(w->handle, NULL, S(key), &out, &found, &err));
    if (found) {
      len = (size_t)((w->number + 1) % THREADS * 997 + i * 13001) % 60000;
      CHECK_INT(out.len, len);
    }
    walrusds_buf_free(&out);
    /* All threads write one key. */
    OK(walrusds_put(w->handle, NULL, S("/contended"), S(text("%d", w->number)), &err));
    if (i % 3 == 0) OK(walrusds_delete(w->handle, NULL, S("/contended"), &err));
    if (i % 5 == 0) {
      walrusds_query query = 0;
      const char *below = text("/%d", w->number);
      walrusds_query_options some = {
          .prefix = bytes_of(below), .prefix_len = strlen(below), .keys_only = i % 2 == 0, .limit = 10};
      walrusds_page page;
      OK(walrusds_query_open(w->handle, NULL, &some, &query, &err));
      OK(walrusds_query_next(query, NULL, &page, &err));
      CHECK(page.len > 0);
      walrusds_page_free(&page);
      OK(walrusds_query_close(query, &err));
      walrusds_buf json;
      OK(walrusds_metrics(w->handle, &json, &err));
      CHECK(is_json(json.data, json.len));
      walrusds_buf_free(&json);
      walrusds_buf text;
      OK(walrusds_open_metrics(w->handle, &text, &err));
      CHECK(holds(text.data, text.len, "# EOF"));
      walrusds_buf_free(&text);
    }
  }
  return NULL;
}

static void threads_on_one_datastore(void) {
  struct worker workers[THREADS];
  walrusds_handle handle = open_new();
  for (int i = 0; i < THREADS; i++) workers[i] = (struct worker){0, handle, NULL};
  run(one_datastore, workers);
  close_ok(handle);
}

static void *own_datastore(void *arg) {
  (void)arg;
  for (int i = 0; i < (quick ? 1 : 3); i++) {
    walrusds_handle handle = open_new();
    put_text(handle, "/k", "v");
    close_ok(handle);
    CALL(WALRUSDS_CLOSED, NULL, walrusds_close(handle, &err));
  }
  return NULL;
}

static void threads_with_their_own_datastores(void) {
  struct worker workers[THREADS] = {{0, 0, NULL}};
  run(own_datastore, workers);
}

/* Calls until told that the datastore is closed. No other outcome is allowed. */
static void *until_closed(void *arg) {
  struct worker *w = arg;
  for (int i = 0;; i++) {
    int32_t rc;
    const char *key = text("/%d/%d", w->number, i);
    walrusds_error err;
    walrusds_buf out = {NULL, 0, NULL};
    bool found = false;
    uint64_t number;
    switch (w->number % 6) {
      case 0:
        rc = walrusds_put(w->handle, NULL, S(key), S("v"), &err);
        break;
      case 1:
        rc = walrusds_get(w->handle, NULL, S("/k"), &out, &found, &err);
        CHECK(rc != WALRUSDS_OK || (found && out.len == 5));
        break;
      case 2:
        rc = walrusds_has(w->handle, NULL, S("/k"), &found, &err);
        CHECK(rc != WALRUSDS_OK || found);
        break;
      case 3:
        rc = walrusds_disk_usage(w->handle, NULL, &number, &err);
        break;
      case 4: {
        walrusds_op ops[] = {{WALRUSDS_OP_PUT, S(key), S("v")}, {WALRUSDS_OP_DELETE, S("/x"), NULL, 0}};
        rc = walrusds_batch_commit(w->handle, NULL, ops, 2, &err);
        break;
      }
      default: {
        walrusds_query query = 0;
        walrusds_page page = {NULL, 0, NULL};
        walrusds_query_options all = {0};
        rc = walrusds_query_open(w->handle, NULL, &all, &query, &err);
        if (rc == WALRUSDS_OK) rc = walrusds_query_next(query, NULL, &page, &err);
        walrusds_page_free(&page);
        /* It may have been ended by close in between. */
        int32_t closed = query == 0 ? WALRUSDS_OK : walrusds_query_close(query, NULL);
        CHECK(closed == WALRUSDS_OK || closed == WALRUSDS_CLOSED);
      }
    }
    walrusds_buf_free(&out);
    if (rc != WALRUSDS_OK) {
      CHECK_INT(rc, WALRUSDS_CLOSED);
      CHECK_INT(err.code, rc);
      walrusds_error_free(&err);
      atomic_fetch_add(w->ended, 1);
      return NULL;
    }
  }
}

static void close_races_with_calls(void) {
  for (int round = 0; round < (quick ? 1 : 5); round++) {
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    atomic_int ended = 0;
    const char *config = config_for(net_url, net_url, "");
    const char *dir = new_dir();
    walrusds_handle handle = open_at(config, dir);
    put_text(handle, "/k", "value");
    for (int i = 0; i < THREADS; i++) {
      workers[i] = (struct worker){i, handle, &ended};
      threads[i] = start(until_closed, &workers[i]);
    }
    sleep_ms(quick ? 500 : 20 + round * 30);
    close_ok(handle);
    for (int i = 0; i < THREADS; i++) join(threads[i]);
    CHECK_INT(atomic_load(&ended), THREADS);
    /* Close left the index in order. */
    handle = open_at(config, dir);
    expect_text(handle, "/k", "value");
    close_ok(handle);
  }
}

struct closer {
  walrusds_handle handle;
  atomic_int *won;
};

static void *close_it(void *arg) {
  struct closer *c = arg;
  walrusds_error err;
  int32_t rc = walrusds_close(c->handle, &err);
  if (rc == WALRUSDS_OK)
    atomic_fetch_add(c->won, 1);
  else
    CHECK_INT(rc, WALRUSDS_CLOSED);
  walrusds_error_free(&err);
  return NULL;
}

static void close_races_with_close(void) {
  atomic_int won = 0;
  struct closer closer = {open_new(), &won};
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) threads[i] = start(close_it, &closer);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  CHECK_INT(atomic_load(&won), 1);
}

static void *tokens(void *arg) {
  (void)arg;
  for (int i = 0; i < rounds() * 20; i++) {
    walrusds_cancel_token token = 0;
    OK(walrusds_cancel_new(&token, &err));
    if (i % 2 == 0) OK(walrusds_cancel(token, &err));
    OK(walrusds_cancel_free(token, &err));
    CALL(WALRUSDS_CLOSED, NULL, walrusds_cancel_free(token, &err));
  }
  return NULL;
}

static void tokens_in_threads(void) {
  struct worker workers[THREADS] = {{0, 0, NULL}};
  run(tokens, workers);
}

const struct test thread_tests[] = {
    {"16 threads on one datastore", threads_on_one_datastore, 1},
    {"16 threads with datastores of their own", threads_with_their_own_datastores, 1},
    {"close races with calls", close_races_with_calls, 1},
    {"close races with close", close_races_with_close, 1},
    {"cancel tokens in 16 threads", tokens_in_threads, 1},
    {NULL, NULL, 0},
};
