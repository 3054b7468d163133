package store

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	ggufMagic = "GGUF"
	// A file that claims more than this of anything is not read any further.
	ggufMaxCount = 1 << 20
	// The least that an entry takes in the file: a key of one byte with a one-byte value, and a tensor of one dimension.
	ggufMinKey    = 8 + 1 + 4 + 1
	ggufMinTensor = 8 + 1 + 4 + 8 + 4 + 8
	ggufHeader    = 4 + 4 + 8 + 8
)

// isGGUF reports whether a blob begins like a GGUF file.
func (s *Store) isGGUF(digest string) bool {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == ggufMagic
}

// checkGGUF reads the fixed part of a GGUF file and refuses counts that its size cannot hold. What the counts announce
// is for the engine's reader to check.
func (s *Store) checkGGUF(digest string) error {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return s.failure(err, "reading a GGUF file")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s.failure(err, "reading a GGUF file")
	}
	var h [ggufHeader]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return invalidGGUF("it ends within its header")
	}
	version := binary.LittleEndian.Uint32(h[4:])
	tensors, keys := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	switch {
	case string(h[:4]) != ggufMagic:
		return errNotGGUF()
	case version != 2 && version != 3:
		return invalidGGUF("its version %d is not supported (2 and 3 are)", version)
	case tensors > ggufMaxCount || keys > ggufMaxCount:
		return invalidGGUF("it claims %d tensors and %d keys", tensors, keys)
	case tensors*ggufMinTensor+keys*ggufMinKey > uint64(info.Size())-ggufHeader:
		return invalidGGUF("it is too short for %d tensors and %d keys", tensors, keys)
	}
	return nil
}

// errNotGGUF has Ollama's text.
func errNotGGUF() error {
	return errdefs.New(errdefs.ErrInvalid, "supplied file was not in GGUF format")
}

func invalidGGUF(format string, args ...any) error {
	return errdefs.New(errdefs.ErrInvalid, "the GGUF file is damaged: %s", fmt.Sprintf(format, args...))
}
