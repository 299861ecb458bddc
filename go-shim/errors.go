package walrusds

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Code distinguishes the failures on which a caller may want to act differently. The numbers are
// those of the C ABI and never change.
type Code int32

const (
	CodeInvalidArgument Code = 1
	CodeConfig          Code = 2
	CodeClosed          Code = 3
	CodeCanceled        Code = 4
	CodeDeadline        Code = 5
	CodeIndex           Code = 6
	CodeWalrus          Code = 7
	CodeBlobNotFound    Code = 8
	CodeCorrupt         Code = 9
	CodeTooLarge        Code = 10
	CodeUnsupported     Code = 11
	CodeLocked          Code = 12
	CodeInternal        Code = 13
	CodePanic           Code = 14
	CodeDisk            Code = 15
)

var codeText = map[Code]string{
	CodeInvalidArgument: "invalid argument",
	CodeConfig:          "invalid configuration",
	CodeClosed:          "the datastore is closed",
	CodeCanceled:        "canceled",
	CodeDeadline:        "deadline exceeded",
	CodeIndex:           "the index failed",
	CodeWalrus:          "Walrus failed",
	CodeBlobNotFound:    "blob not found on Walrus",
	CodeCorrupt:         "corrupt data",
	CodeTooLarge:        "too large",
	CodeUnsupported:     "not supported",
	CodeLocked:          "locked by another process",
	CodeInternal:        "internal error",
	CodePanic:           "internal panic",
	CodeDisk:            "local disk error",
}

func (c Code) String() string {
	if t, ok := codeText[c]; ok {
		return t
	}
	return fmt.Sprintf("error code %d", int32(c))
}

// Error is the engine's error. Its message never holds a secret (neither the database URL nor a
// token).
type Error struct {
	Code      Code
	Retryable bool // the same call may well succeed later
	Message   string
}

func (e *Error) Error() string {
	m := e.Message
	if m == "" {
		m = e.Code.String()
	}
	if strings.HasPrefix(m, "walrusds:") {
		return m
	}
	return "walrusds: " + m
}

// Is reports whether target is the sentinel of the same code (ErrClosed, ...).
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == CodeCanceled
	case context.DeadlineExceeded:
		return e.Code == CodeDeadline
	}
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// Sentinels for errors.Is. An unknown key is none of these: it is datastore.ErrNotFound itself.
var (
	ErrInvalidArgument error = &Error{Code: CodeInvalidArgument}
	ErrConfig          error = &Error{Code: CodeConfig}
	ErrClosed          error = &Error{Code: CodeClosed}
	ErrCanceled        error = &Error{Code: CodeCanceled}
	ErrDeadline        error = &Error{Code: CodeDeadline}
	ErrIndex           error = &Error{Code: CodeIndex}
	ErrWalrus          error = &Error{Code: CodeWalrus}
	ErrBlobNotFound    error = &Error{Code: CodeBlobNotFound}
	ErrCorrupt         error = &Error{Code: CodeCorrupt}
	ErrTooLarge        error = &Error{Code: CodeTooLarge}
	ErrUnsupported     error = &Error{Code: CodeUnsupported}
	ErrLocked          error = &Error{Code: CodeLocked}
	ErrInternal        error = &Error{Code: CodeInternal}
	ErrPanic           error = &Error{Code: CodePanic}
	ErrDisk            error = &Error{Code: CodeDisk}
)

// contextual replaces the engine's error for an ended context with the context's own error.
func contextual(ctx context.Context, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case CodeCanceled, CodeDeadline:
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		// The engine's deadline may fire a moment before Go's.
		if _, ok := ctx.Deadline(); ok && e.Code == CodeDeadline {
			return context.DeadlineExceeded
		}
	}
	return err
}
