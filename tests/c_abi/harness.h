/* Shared by the tests of the C ABI: checks, and shorthands for the calls. */
#ifndef HARNESS_H
#define HARNESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walrusds.h"

/* Where the tests run; set by main. */
extern const char *net_url;  /* a Walrus that answers at once */
extern const char *slow_url; /* one that takes slow_ms for every upload and every read */
extern const char *work_dir;
extern int slow_ms;
extern int prompt_ms; /* a wait that was given up ends within this time */
extern int quick;     /* a smaller workload */

/* Notes a failed check of the running test; may be called from any thread. */
void failed(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define CHECK(condition)                                               \
  do {                                                                 \
    if (!(condition)) failed(__FILE__, __LINE__, "%s", #condition);    \
  } while (0)

#define CHECK_INT(actual, expected)                                              \
  do {                                                                           \
    long long a_ = (long long)(actual), e_ = (long long)(expected);              \
    if (a_ != e_)                                                                \
      failed(__FILE__, __LINE__, "%s is %lld, expected %lld", #actual, a_, e_);  \
  } while (0)

/* CALL(code, words, f(..., &err)): checks that `f` returns `code`, that `err` has that code, and
 * that its message holds `words`. The error is garbage before, and empty after it was freed. */
#define CALL(code, words, call)                                         \
  do {                                                                  \
    walrusds_error err;                                                 \
    memset(&err, 0xAA, sizeof err);                                     \
    int32_t rc_ = (call);                                               \
    check_outcome(__FILE__, __LINE__, #call, rc_, (code), (words), &err); \
  } while (0)
#define OK(call) CALL(WALRUSDS_OK, NULL, call)

/* The same for calls that fail: `out`, garbage before, is zero afterwards. */
#define FAILS_ZEROED(code, words, out, call)                            \
  do {                                                                  \
    memset(&(out), 0xAA, sizeof(out));                                  \
    CALL(code, words, call);                                            \
    CHECK(all_zero(&(out), sizeof(out)));                               \
  } while (0)

void check_outcome(const char *file, int line, const char *what, int32_t rc, int32_t expected,
                   const char *words, walrusds_error *err);
int all_zero(const void *p, size_t len);

/* A string or a literal as the pair of arguments that the ABI takes. */
static inline const uint8_t *bytes_of(const char *s) { return (const uint8_t *)s; }
#define S(text) bytes_of(text), strlen(text)

/* Milliseconds of a clock that only goes forward. */
int64_t now_ms(void);
void sleep_ms(int ms);

/* `len` bytes that depend on `seed`; to be freed. Never NULL. */
uint8_t *pattern(size_t len, unsigned seed);

/* Text as printf makes it, in a ring of static buffers of the calling thread. */
const char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A value that no Walrus has seen, as text(): a put of a stored value is acknowledged at once. */
const char *new_value(void);

/* A directory of its own below work_dir, as text(). */
const char *new_dir(void);

/* A configuration for these URLs with an SQLite index, as text(). `more` is further JSON members,
 * each with a comma before it. */
const char *config_for(const char *publisher, const char *aggregator, const char *more);

/* Opens a datastore whose index is in `dir`; 0 and a failed check if that does not work. */
walrusds_handle open_at(const char *config, const char *dir);
/* Opens a new datastore on the fast Walrus. */
walrusds_handle open_new(void);
void close_ok(walrusds_handle handle);

/* Puts a value, and checks that a get returns it. */
void put_text(walrusds_handle handle, const char *key, const char *value);
/* Checks that the value is `value`; NULL: that every function reports the key as unknown. */
void expect_text(walrusds_handle handle, const char *key, const char *value);
void expect_bytes(walrusds_handle handle, const char *key, const uint8_t *value, size_t len);

/* Whether `len` bytes are one JSON value and nothing else. */
int is_json(const uint8_t *text, size_t len);
/* Whether the buffer, which is no C string, holds `words`. */
int holds(const uint8_t *data, size_t len, const char *words);

pthread_t start(void *(*body)(void *), void *arg);
void join(pthread_t thread);

struct test {
  const char *name;
  void (*run)(void);
  int in_quick; /* runs with the smaller workload, too */
};
/* Each table ends with a test without a name. */
extern const struct test open_tests[], value_tests[], argument_tests[], batch_tests[],
    query_tests[], cancel_tests[], queue_tests[], thread_tests[], signal_tests[], panic_tests[];

#endif
