// Package sealed encrypts what a Storage keeps.
//
//	storage, err := sealed.New(inner, key) // 32 random bytes, the same in all members
//	if err != nil {
//		log.Fatal(err)
//	}
//	m := letsencrypt.Manager{Storage: storage}
//
// Whoever owns the storage, or a copy of it, then learns no private key, and can
// neither change a value unnoticed nor pass off one key's value as another's. He
// does see the names of keys and locks, which say what hosts there are, the
// sizes of values and when they change; and he can delete values or put back
// old ones.
//
// # Rotation
//
// The first key seals, and all of them open. To replace a key, restart the
// members with (old, new), so that all can open what is to come; then with
// (new, old); and when everything has been stored anew, with (new) alone.
// Certificates are when they are renewed. What lies still, such as an account, a
// program may List, Load and Store again, while no member is running.
//
// # Format
//
// A value is sealed with AES-256-GCM under a random nonce, which is safe for
// 2^32 values a key. It begins with a byte for the version, 1, and eight that
// tell keys apart; the nonce, the ciphertext and the tag follow. The first nine
// bytes and the storage key are the associated data. Values that are not sealed
// are an error, not let through: a storage that is to be sealed begins empty.
package sealed

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"example.com/letsencrypt"
)

const (
	version    = "\x01"
	idSize     = 8
	headerSize = len(version) + idSize
)

// A storage is another whose values are sealed. Locks, and the names of what is
// there, are the other's.
type storage struct {
	letsencrypt.Storage
	keys []key
}

type key struct {
	header string // of what it seals
	aead   cipher.AEAD
}

// New returns a Storage that keeps values in inner, sealed with the first of
// the keys. It opens what any of them has sealed. Keys have 32 bytes that nobody
// can guess: they are not passwords.
func New(inner letsencrypt.Storage, keys ...[]byte) (letsencrypt.Storage, error) {
	if len(keys) == 0 {
		return nil, errors.New("sealed: no key")
	}
	s := &storage{Storage: inner}
	for i, secret := range keys {
		k, err := newKey(secret)
		if err != nil {
			return nil, fmt.Errorf("sealed: key %d: %w", i+1, err)
		}
		s.keys = append(s.keys, k)
	}
	return s, nil
}

func newKey(secret []byte) (key, error) {
	if len(secret) != 32 {
		return key{}, fmt.Errorf("it has %d bytes, not 32", len(secret))
	}
	id, err := hkdf.Expand(sha256.New, secret, "letsencrypt/store/sealed: identifier of a key", idSize)
	if err != nil {
		return key{}, err
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return key{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return key{version + string(id), aead}, err
}

// seal returns what is stored for the value at name.
func (k key) seal(name string, value []byte) []byte {
	return k.aead.Seal([]byte(k.header), nil, value, []byte(k.header+name))
}

// open returns the value that was stored at name as data.
func (s *storage) open(name string, data []byte) ([]byte, error) {
	if !strings.HasPrefix(string(data), version) || len(data) < headerSize {
		return nil, errors.New("it is not sealed")
	}
	header := string(data[:headerSize])
	i := slices.IndexFunc(s.keys, func(k key) bool { return k.header == header })
	if i < 0 {
		return nil, fmt.Errorf("it is sealed with a key that was not given, %x", header[len(version):])
	}
	value, err := s.keys[i].aead.Open(nil, nil, data[headerSize:], []byte(header+name))
	if err != nil {
		return nil, errors.New("it is not as it was sealed, or not from here")
	}
	return value, nil
}

// Store stores the value sealed.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	return s.Storage.Store(ctx, key, s.keys[0].seal(key, value))
}

// Load returns the value that was sealed at key. An error of opening it is not
// fs.ErrNotExist: something is there.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	data, err := s.Storage.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	value, err := s.open(key, data)
	if err != nil {
		return nil, fmt.Errorf("sealed: the value at %q: %w", key, err)
	}
	return value, nil
}
