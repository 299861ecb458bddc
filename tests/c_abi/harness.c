#include "harness.h"

#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>

int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void sleep_ms(int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  nanosleep(&t, NULL);
}

uint8_t *pattern(size_t len, unsigned seed) {
  uint8_t *p = malloc(len + 1);
  if (p == NULL) abort();
  uint32_t x = seed * 2654435761u + 1;
  for (size_t i = 0; i < len; i++) {
    x = x * 1664525u + 1013904223u;
    p[i] = (uint8_t)(x >> 24);
  }
  return p;
}

const char *text(const char *format, ...) {
  enum { COUNT = 16, SIZE = 8192 };
  static _Thread_local char ring[COUNT][SIZE];
  static _Thread_local unsigned next;
  char *buffer = ring[next++ % COUNT];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(buffer, SIZE, format, args);
  va_end(args);
  if (n < 0 || n >= SIZE) abort();
  return buffer;
}

const char *new_value(void) {
  static atomic_int number;
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return text("%lld.%09ld/%d", (long long)t.tv_sec, t.tv_nsec, atomic_fetch_add(&number, 1));
}

const char *new_dir(void) {
  static atomic_int number;
  const char *dir = text("%s/%d", work_dir, atomic_fetch_add(&number, 1));
  if (mkdir(dir, 0700) != 0) failed(__FILE__, __LINE__, "cannot make %s", dir);
  return dir;
}

const char *config_for(const char *publisher, const char *aggregator, const char *more) {
  return text("{\"publisherURL\": \"%s\", \"aggregatorURL\": \"%s\", \"indexPath\": \"index.sqlite\"%s}",
              publisher, aggregator, more);
}

walrusds_handle open_at(const char *config, const char *dir) {
  walrusds_handle handle = 0;
  OK(walrusds_open(S(config), S(dir), NULL, &handle, &err));
  CHECK(handle != 0);
  return handle;
}

walrusds_handle open_new(void) {
  /* Renewal is left to other nodes, so the node has nothing to complain of. */
  return open_at(config_for(net_url, net_url, ", \"disableFlush\": true"), new_dir());
}

void close_ok(walrusds_handle handle) { OK(walrusds_close(handle, &err)); }

int all_zero(const void *p, size_t len) {
  const uint8_t *b = p;
  for (size_t i = 0; i < len; i++)
    if (b[i] != 0) return 0;
  return 1;
}

int holds(const uint8_t *data, size_t len, const char *words) {
  size_t n = strlen(words);
  for (size_t i = 0; i + n <= len; i++)
    if (memcmp(data + i, words, n) == 0) return 1;
  return n == 0;
}

void check_outcome(const char *file, int line, const char *what, int32_t rc, int32_t expected,
                   const char *words, walrusds_error *err) {
  int len = err->message.len > 500 ? 500 : (int)err->message.len;
  const char *said = len > 0 ? (const char *)err->message.data : "";
  if (rc != expected)
    failed(file, line, "%s returned %d, expected %d: %.*s", what, rc, expected, len, said);
  if (err->code != rc) failed(file, line, "%s: err.code is %d, returned %d", what, err->code, rc);
  if (rc == WALRUSDS_OK) {
    if (err->retryable || err->message.len != 0 || err->message.data != NULL)
      failed(file, line, "%s: success with an error", what);
  } else {
    if (err->message.len == 0) failed(file, line, "%s: no message", what);
    if (words != NULL && !holds(err->message.data, err->message.len, words))
      failed(file, line, "%s: \"%s\" is not in: %.*s", what, words, len, said);
  }
  walrusds_error_free(err);
  if (err->code != WALRUSDS_OK || err->retryable || err->message.data != NULL ||
      err->message.len != 0 || err->message.owner != NULL)
    failed(file, line, "%s: the freed error is not empty", what);
}

void put_text(walrusds_handle handle, const char *key, const char *value) {
  OK(walrusds_put(handle, NULL, S(key), S(value), &err));
  expect_text(handle, key, value);
}

void expect_text(walrusds_handle handle, const char *key, const char *value) {
  if (value != NULL) {
    expect_bytes(handle, key, S(value));
    return;
  }
  walrusds_buf out;
  bool found = true;
  uint64_t size;
  FAILS_ZEROED(WALRUSDS_OK, NULL, out, walrusds_get(handle, NULL, S(key), &out, &found, &err));
  CHECK(!found);
  found = true;
  OK(walrusds_has(handle, NULL, S(key), &found, &err));
  CHECK(!found);
  found = true;
  FAILS_ZEROED(WALRUSDS_OK, NULL, size, walrusds_get_size(handle, NULL, S(key), &size, &found, &err));
  CHECK(!found);
}

void expect_bytes(walrusds_handle handle, const char *key, const uint8_t *value, size_t len) {
  walrusds_buf out;
  bool found = false;
  uint64_t size = 0;
  memset(&out, 0xAA, sizeof out);
  OK(walrusds_get(handle, NULL, S(key), &out, &found, &err));
  CHECK(found);
  CHECK_INT(out.len, len);
  CHECK(out.len != len || len == 0 || memcmp(out.data, value, len) == 0);
  CHECK((len == 0) == (out.data == NULL));
  walrusds_buf_free(&out);
  CHECK(all_zero(&out, sizeof out));
  found = false;
  OK(walrusds_has(handle, NULL, S(key), &found, &err));
  CHECK(found);
  found = false;
  OK(walrusds_get_size(handle, NULL, S(key), &size, &found, &err));
  CHECK(found);
  CHECK_INT(size, len);
}

pthread_t start(void *(*body)(void *), void *arg) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, arg) != 0) abort();
  return thread;
}

void join(pthread_t thread) {
  if (pthread_join(thread, NULL) != 0) abort();
}

/* A JSON parser that only decides whether a text is JSON. */
struct json {
  const uint8_t *at, *end;
};

static int value(struct json *j);

static void space(struct json *j) {
  while (j->at < j->end && memchr(" \t\r\n", *j->at, 4) != NULL) j->at++;
}

static int take(struct json *j, char c) {
  space(j);
  if (j->at == j->end || *j->at != c) return 0;
  j->at++;
  return 1;
}

static int string(struct json *j) {
  if (!take(j, '"')) return 0;
  for (; j->at < j->end && *j->at != '"'; j->at++) {
    if (*j->at < 0x20) return 0;
    if (*j->at == '\\' && ++j->at == j->end) return 0;
  }
  return take(j, '"');
}

static int member(struct json *j) { return string(j) && take(j, ':') && value(j); }

static int list(struct json *j, char end, int (*item)(struct json *)) {
  if (take(j, end)) return 1;
  do {
    if (!item(j)) return 0;
  } while (take(j, ','));
  return take(j, end);
}

static int value(struct json *j) {
  if (take(j, '{')) return list(j, '}', member);
  if (take(j, '[')) return list(j, ']', value);
  space(j);
  if (j->at < j->end && *j->at == '"') return string(j);
  const uint8_t *from = j->at;
  while (j->at < j->end && memchr("+-.0123456789Eaeflnrstu", *j->at, 23) != NULL) j->at++;
  return j->at > from;
}

int is_json(const uint8_t *text, size_t len) {
  struct json j = {text, text + len};
  if (len == 0 || !value(&j)) return 0;
  space(&j);
  return j.at == j.end;
}
