package walrusds

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// Every code of the C header has a text and a sentinel here, and nothing else has.
func TestEveryCodeHasATextAndASentinel(t *testing.T) {
	header, err := os.ReadFile("../include/walrusds.h")
	if err != nil {
		t.Fatal(err)
	}
	sentinels := []error{
		ErrInvalidArgument, ErrConfig, ErrClosed, ErrCanceled, ErrDeadline, ErrIndex, ErrWalrus, ErrBlobNotFound,
		ErrCorrupt, ErrTooLarge, ErrUnsupported, ErrLocked, ErrInternal, ErrPanic, ErrDisk,
	}
	// The codes are the numbers from 1 on, up to the first constant of another kind.
	constants := regexp.MustCompile(`(?m)^#define WALRUSDS_([A-Z_]+) (\d+)$`).FindAllStringSubmatch(string(header), -1)
	codes := 0
	for _, c := range constants {
		if n, _ := strconv.Atoi(c[2]); n != codes+1 || c[1] == "ABI_VERSION" {
			continue
		}
		codes++
		failure := &Error{Code: Code(codes), Message: "as it happens"}
		matches := 0
		for _, s := range sentinels {
			if errors.Is(failure, s) {
				matches++
			}
		}
		if codeText[Code(codes)] == "" || matches != 1 {
			t.Errorf("WALRUSDS_%s (%d): text %q, %d sentinels", c[1], codes, codeText[Code(codes)], matches)
		}
	}
	if codes != len(codeText) || codes != len(sentinels) || codes < 15 {
		t.Errorf("%d codes in the header, %d texts, %d sentinels", codes, len(codeText), len(sentinels))
	}
}
