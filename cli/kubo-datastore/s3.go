package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/service/s3"
	ds "github.com/ipfs/go-datastore"
	s3ds "github.com/ipfs/go-ds-s3"
)

type s3Store struct{ *s3ds.S3Bucket }

// openS3 opens a bucket with the settings of go-ds-s3's plugin. Nothing is asked yet.
func openS3(l leaf, _ options) (store, error) {
	var config s3ds.Config
	for _, text := range []struct {
		key    string
		into   *string
		needed bool
	}{
		{"region", &config.Region, true},
		{"bucket", &config.Bucket, true},
		{"accessKey", &config.AccessKey, false},
		{"secretKey", &config.SecretKey, false},
		{"sessionToken", &config.SessionToken, false},
		{"regionEndpoint", &config.RegionEndpoint, false},
		{"rootDirectory", &config.RootDirectory, false},
		{"credentialsEndpoint", &config.CredentialsEndpoint, false},
	} {
		value, given := l.spec[text.key]
		is, ok := value.(string)
		if given && !ok || text.needed && is == "" {
			return nil, fmt.Errorf("%q: %s found, a text expected", text.key, shape(value))
		}
		*text.into = is
	}
	bucket, err := s3ds.NewS3Datastore(config)
	if err != nil {
		return nil, err
	}
	return s3Store{bucket}, nil
}

// stream lists the objects page by page. (The library's own queries leave out the root directory,
// and all keys behind the first page that hold a slash.)
func (s s3Store) stream(ctx context.Context, prefix ds.Key, readers int, out *stream) error {
	// The object of the key /k is "k", or "root/k".
	root := under(s.RootDirectory)
	list := func(ctx context.Context, found func(key string) error) (err error) {
		input := &s3.ListObjectsV2Input{
			Bucket: aws.String(s.Bucket),
			Prefix: aws.String(under(path.Join(s.RootDirectory, prefix.String()))),
		}
		listed := s.S3.ListObjectsV2PagesWithContext(ctx, input, func(page *s3.ListObjectsV2Output, _ bool) bool {
			for _, object := range page.Contents {
				name := aws.StringValue(object.Key)
				// Consoles make empty objects for directories.
				if strings.HasSuffix(name, "/") {
					continue
				}
				if err = found("/" + strings.TrimPrefix(name, root)); err != nil {
					return false
				}
			}
			return true
		})
		return errors.Join(err, listed)
	}
	get := func(ctx context.Context, key string) ([]byte, error) {
		return s.Get(ctx, ds.RawKey(key))
	}
	return fetch(ctx, readers, out, list, get)
}

// under is what the names of the objects in a directory begin with.
func under(directory string) string {
	directory = strings.Trim(path.Clean("/"+directory), "/")
	if directory == "" {
		return ""
	}
	return directory + "/"
}
