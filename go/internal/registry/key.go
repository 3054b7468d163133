package registry

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// loadKey returns the key that stands for the user at registries: the one that Ollama uses. It is made if there is none.
func loadKey(path string) (ssh.Signer, error) {
	if path == "" {
		return nil, errdefs.New(errdefs.ErrPrecondition, "there is no home directory to keep a key in, and the registry asks for one")
	}
	content, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil {
			content, err = readKey(path)
		}
	}
	if err != nil {
		return nil, errdefs.New(errdefs.ErrPrecondition, "the key ~/.ollama/id_ed25519 cannot be used: %w", bare(err))
	}
	signer, err := ssh.ParsePrivateKey(content)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrPrecondition, "the key ~/.ollama/id_ed25519 cannot be used: %w", err)
	}
	return signer, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// makeKey writes a new key and its public half. A key that another process wrote meanwhile stays.
func makeKey(path string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return err
	}
	sshPublic, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Whole or not at all: a link does not replace a file that is there.
	temp, err := os.CreateTemp(filepath.Dir(path), ".id_ed25519-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(sshPublic), 0o644)
}

// bare takes the path out of an error, which may reach clients.
func bare(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	var linkErr *os.LinkError
	if errors.As(err, &linkErr) {
		return linkErr.Err
	}
	return err
}
